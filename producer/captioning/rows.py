"""Converts results to JSON rows, which `--json` prints and a batch writes."""

from __future__ import annotations

import json
from typing import Any

from sailq.shared.errors import SailqError
from sailq.shared.jobs import Result, Timings, Usage, media_parts
from sailq.shared.media.messages import Prepared
from sailq.shared.terminal import as_line

from .rowfile import Form

Row = dict[str, Any]


def media_fields(prepared: Prepared | None) -> Row:
    """The row's fields about its media; None for `prepared` leaves them empty.

    `media`: the frames that were sent of each medium, with their times in seconds from the clip's first frame.
    `damaged_frames`: number of frames that were found damaged.
    """
    parts = media_parts(prepared.messages) if prepared else []
    return {
        "media": [part.model_dump(exclude={"blob"}) for part in parts],
        "damaged_frames": prepared.damaged_frames if prepared else 0,
    }


def as_row(result: Result) -> Row:
    """A result as plain JSON values: `text`, the thought before it (`reasoning`), `metrics` (seconds, tokens), `error`
    and the worker that answered."""
    return {
        "text": result.text,
        "reasoning": result.reasoning,
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


def row_of(answer: Result | Exception) -> Row:
    """The row of what `run_batch` yields for a clip."""
    if isinstance(answer, Result):
        return as_row(answer)
    if isinstance(answer, SailqError):
        return failed_row(answer)
    return failed_row(SailqError(f"This clip cannot be read: {type(answer).__name__}: {answer}."))


def failed_row(error: SailqError) -> Row:
    """A row of the same shape for a clip that failed before it had a result."""
    return {
        "text": "",
        "reasoning": "",
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


def _read(line: bytes) -> Row | None:
    """The row in a line of a batch's file; None if the line is not a row."""
    try:
        row: Row = json.loads(line)
        names = [row["source"], row["request"]]
        for file in row.get("files", []):
            names.append(file["path"])
            _ = file["size"], file["mtime"]
        _ = failed(row)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return row if all(isinstance(name, str) for name in names) else None


def _write(row: Row) -> bytes:
    return f"{as_line(row)}\n".encode()


def failed(row: Row) -> bool:
    """Whether a row has no complete answer."""
    return row["error"] is not None or row["finish_reason"] not in {"stop", "length"}


def why(row: Row) -> str | None:
    """The sentence that says why a row has no complete answer; None if it has one."""
    if not failed(row):
        return None
    if row["error"] is not None:
        return str(row["error"]["message"])
    return f"The answer ended early: {row['finish_reason']}."


CAPTIONS = Form(b'{"index": ', _read, _write, "--out")
"""The rows of `sailq caption`."""
