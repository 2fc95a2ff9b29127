"""Times as people and programs write them."""

from __future__ import annotations

import re
import time
from datetime import datetime

from sailq.shared.errors import BadRequest, quoted

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_time(text: str, now: float) -> float:
    """Seconds since the epoch of a time in ISO 8601 form, such as "2026-11-28" or "2026-11-28T10:00:00Z", or of an age:
    "90s", "15m", "6h", "7d". Without a zone, the zone is this machine's. Raises BadRequest.

    `now`: seconds since the epoch.
    """
    if age := re.fullmatch(r"(\d{1,9})([smhd])", text.strip()):
        return now - int(age[1]) * _UNITS[age[2]]
    found = read_iso(text)
    if found is None:
        raise BadRequest(
            f"{quoted(text)!r} is not a time: write 2026-11-28, 2026-11-28T10:00, or an age such as 15m, 6h or 7d."
        )
    return found


def read_span(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    """The times that `--since` and `--until` name; None for one that is not given. Raises BadRequest."""
    now = time.time()
    return (
        None if since is None else read_time(since, now),
        None if until is None else read_time(until, now),
    )


def read_iso(text: str) -> float | None:
    """Seconds since the epoch of a time in ISO 8601 form; None for any other text."""
    try:
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
