"""The input of OpenAI's Batch API: JSONL whose lines are requests with a `custom_id`.

The form, the limits and the errors' fields are those of OpenAI's Batch API (openai 3.57, types/batch_create_params.py
and types/batch_error.py). Unlike there, a file may ask several models.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, quoted

from ..captioning.names import for_terminal
from .errors import ApiError
from .json_text import read_json

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_BYTES = 200 * 2**20
MAX_ERRORS = 100
"""The most errors of a file that are reported."""
_TOLD = 5
"""The most errors in one sentence."""


@dataclass(frozen=True)
class LineError:
    """What is wrong with a line. Of the whole file if `line` is None; lines count from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class InvalidInput(BadRequest):
    """A file that is not the input of a batch. `errors`: the first of them, `MAX_ERRORS` at most."""

    def __init__(self, name: str, errors: list[LineError]) -> None:
        self.errors = errors
        told = [f"line {one.line}: {one.message}" if one.line else one.message for one in errors[:_TOLD]]
        more = f" And {len(errors) - _TOLD} more." if len(errors) > _TOLD else ""
        super().__init__(f"{name} is not a batch: {' '.join(told)}{more}")


@dataclass(frozen=True)
class Line:
    """A request.

    Attributes:
        index: place among the requests, from 0.
        id: `batch_req_` and a fingerprint of `custom_id` and the body.
        model: that of the body; empty if the body has no valid one.
        offset, length: bytes in the file.
    """

    index: int
    id: str
    custom_id: str
    model: str
    offset: int
    length: int


class BatchInput:
    """The requests of a file, which is open until `close`. Their bodies stay on the disk."""

    def __init__(self, path: Path, *, model: str | None = None) -> None:
        """`model`: that of the bodies that name none. Raises InvalidInput, and BadRequest for an unreadable file."""
        self.name, self._model = for_terminal(path.name), model
        self.lines: list[Line] = []
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadRequest(f"{self.name} cannot be read: it is a pipe or a device, not a file.")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BadRequest(f"{self.name} cannot be read: {error.strerror}.") from None
        try:
            if errors := self._read():
                raise InvalidInput(self.name, errors)
        except OSError as error:
            self.close()
            raise BadRequest(f"{self.name} cannot be read: {error.strerror}.") from None
        except BaseException:
            self.close()
            raise

    @property
    def models(self) -> list[str]:
        """The names of the models that are asked."""
        return sorted({line.model for line in self.lines if line.model})

    def body(self, line: Line) -> dict[str, Any]:
        """The body of a request. Safe to call from several threads. Raises ApiError if the file was changed."""
        data = os.pread(self._file.fileno(), line.length, line.offset)
        try:
            _, body = self._fields(data)
            if _id(line.custom_id, body) == line.id:
                return body
        except _Wrong:
            pass
        raise ApiError(400, "The file of the batch was changed while the batch ran.", code="input_file_changed")

    def close(self) -> None:
        self._file.close()

    def _read(self) -> list[LineError]:
        if os.fstat(self._file.fileno()).st_size > MAX_BYTES:
            return [LineError("file_too_large", f"The file has more than {MAX_BYTES >> 20} MB.")]
        errors: list[LineError] = []
        seen: dict[str, int] = {}
        end = 0
        for number, data in enumerate(self._file, 1):
            offset, end = end, end + len(data)
            if not data.strip():
                continue
            if len(self.lines) == MAX_LINES:
                return [LineError("too_many_requests", f"The file has more than {MAX_LINES} requests.")]
            try:
                custom_id, body = self._fields(data)
                if seen.setdefault(custom_id, number) != number:
                    raise _Wrong("duplicate_custom_id", f"line {seen[custom_id]} has this custom_id, too.", "custom_id")
            except _Wrong as error:
                errors.append(LineError(error.code, str(error), number, error.param))
                if len(errors) == MAX_ERRORS:
                    break
                continue
            asked = body.get("model")
            self.lines.append(Line(
                len(self.lines), _id(custom_id, body), custom_id, asked if isinstance(asked, str) else "", offset,
                len(data),
            ))
        if not errors and not self.lines:
            return [LineError("empty_file", "The file has no requests.")]
        return errors

    def _fields(self, data: bytes) -> tuple[str, dict[str, Any]]:
        """(custom_id, body) of a line"""
        try:
            fields = read_json(data.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise _Wrong("invalid_json_line", f"this cannot be read as JSON: {quoted(str(error))}.") from None
        if not isinstance(fields, dict):
            raise _Wrong("invalid_json_line", "this is not a JSON object.")
        for name in ("custom_id", "method", "url", "body"):
            if fields.get(name) is None:
                raise _Wrong("missing_required_parameter", f"{name} is missing.", name)
        custom_id, body = fields["custom_id"], fields["body"]
        if not isinstance(custom_id, str):
            raise _Wrong("invalid_type", "custom_id must be a text.", "custom_id")
        if fields["method"] != "POST":
            raise _Wrong("invalid_method", "the method must be POST.", "method")
        if fields["url"] != ENDPOINT:
            raise _Wrong("invalid_url", f"the url must be {ENDPOINT}.", "url")
        if not isinstance(body, dict):
            raise _Wrong("invalid_type", "body must be a JSON object.", "body")
        if body.get("model") is None and self._model is not None:
            body = {**body, "model": self._model}
        return custom_id, body


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def _id(custom_id: str, body: dict[str, Any]) -> str:
    asked = json.dumps([custom_id, body], sort_keys=True)
    return f"batch_req_{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
