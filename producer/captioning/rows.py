"""Results as rows of JSON: what `--json` prints and what a batch writes."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...shared.errors import BadRequest, SailqError
from ...shared.jobs import Result, Timings, Usage, media_parts
from ..messages import Prepared

Row = dict[str, Any]
_START = b'{"index": '
"""How the line of a batch's row begins."""


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


def as_line(value: Any) -> str:
    """JSON on one line, readable, and escaped where it is no valid Unicode (names of files need not be)."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


class RowFile:
    """A batch's JSONL: appended to as results arrive, put in the order of the input at the end.

    Whenever the process dies, every line that was written is whole, or is the last one and is ignored. A row
    knows what was asked by its `request`, so that a later run takes over what is done already.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadRequest for a file that is there and is not such a JSONL, or cannot be written."""
        self.path = path
        self._done: dict[str, list[Row]] = defaultdict(list)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(path.read_bytes()) if path.exists() else 0
            self._file = path.open("r+" if path.exists() else "x", encoding="utf-8")
            self._file.seek(whole)
            self._file.truncate()
        except OSError as error:
            raise BadRequest(f"{path} cannot be used for the rows: {error.strerror}.") from None

    def _read(self, data: bytes) -> int:
        """Takes note of the rows in `data`; returns how many bytes of it are whole lines."""
        *lines, last = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not failed(row):
                    self._done[row["request"]].append(row)
            except (ValueError, KeyError, TypeError):
                raise BadRequest(f"Line {number} of {self.path} is no row of a batch; choose another --out.") from None
        if not (last.startswith(_START) or _START.startswith(last)):  # else a run died while it wrote this line
            raise BadRequest(f"The last line of {self.path} is no row of a batch; choose another --out.")
        return len(data) - len(last)

    def take_done(self, request: str) -> Row | None:
        """A row without error for the same request, each once."""
        rows = self._done.get(request)
        return rows.pop(0) if rows else None

    def left_over(self) -> Row | None:
        """A row without error that nobody took, if there is one."""
        return next((rows[0] for rows in self._done.values() if rows), None)

    def append(self, row: Row) -> None:
        self._file.write(as_line(row) + "\n")
        self._file.flush()

    def finish(self, rows: Iterable[Row]) -> None:
        """Replaces the file by `rows`, at once or not at all."""
        self._file.close()
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with draft.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(as_line(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
