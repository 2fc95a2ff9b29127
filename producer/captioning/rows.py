"""Results as rows of JSON: what `--json` prints and what a batch writes."""

from __future__ import annotations

import json
from typing import Any

from sailq.shared.errors import SailqError
from sailq.shared.jobs import Result, Timings, Usage, media_parts
from sailq.shared.media.messages import Prepared

Row = dict[str, Any]


def media_fields(prepared: Prepared | None) -> Row:
    """`media`: the frames that were sent of each medium, with their times in seconds from the clip's first frame.

    `damaged_frames`: frames of the clips that were found damaged. None: no medium was read.
    """
    parts = media_parts(prepared.messages) if prepared else []
    return {
        "media": [part.model_dump(exclude={"blob"}) for part in parts],
        "damaged_frames": prepared.damaged_frames if prepared else 0,
    }


def as_row(result: Result) -> Row:
    """`text`, `metrics` (seconds, tokens), `error` and where it was answered; plain JSON values."""
    return {
        "text": result.text,
        "conversation": result.conversation,
        "turn": result.turn,
        "job": result.job,
        "finish_reason": result.finish_reason,
        "metrics": {
            "timings": result.timings.model_dump(),
            "usage": result.usage.model_dump(),
            "tokens_per_second": result.tokens_per_second,
        },
        "error": None if result.error is None else result.error.model_dump(),
        "model": result.model,
        "worker": result.worker,
        "device": result.device,
        "attempt": result.attempt,
        "history": [attempt.model_dump() for attempt in result.history],
    }


def failed_row(error: SailqError) -> Row:
    """The same shape for what never became a result."""
    return {
        "text": "",
        "conversation": None,
        "turn": None,
        "job": None,
        "finish_reason": "error",
        "metrics": {
            "timings": Timings().model_dump(),
            "usage": Usage().model_dump(),
            "tokens_per_second": None,
        },
        "error": {"code": error.code, "message": str(error)},
        "model": None,
        "worker": None,
        "device": None,
        "attempt": 0,
        "history": [],
    }


def failed(row: Row) -> bool:
    """Whether a row holds no whole answer."""
    return row["error"] is not None or row["finish_reason"] not in {"stop", "length"}


def why(row: Row) -> str | None:
    """The sentence that says why there is no whole answer; None where there is one."""
    if not failed(row):
        return None
    if row["error"] is not None:
        return str(row["error"]["message"])
    return f"The answer ended early: {row['finish_reason']}."


def as_line(value: Any, encoding: str = "utf-8") -> str:
    """JSON on one line, readable, and escaped where `encoding` has no such characters (names of files need not be
    Unicode, a terminal may be ASCII)."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return line
