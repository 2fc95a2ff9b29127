"""Times as people type them."""

from __future__ import annotations

import re
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
    try:
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadRequest(
            f"{quoted(text)!r} is not a time: write 2026-11-28, 2026-11-28T10:00, or an age such as 15m, 6h or 7d."
        ) from None
