"""The output of OpenAI's Batch API: for each request a line with its response.

`{"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error": {"code", "message"} | null}`. A
request that was refused or failed has the response with that status and OpenAI's error as its body. `error` is for
requests that have no response, because the batch ended before them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sailq.shared.errors import SailqError
from sailq.shared.jobs import Result
from sailq.shared.terminal import as_line

from ..captioning.rowfile import Form
from .batch_input import Line
from .errors import ApiError, api_error, of_result
from .responses import Completion


@dataclass(frozen=True)
class Row:
    """A line of the output.

    Attributes:
        id: that of the request's `Line`.
        failed: whether it has no complete answer.
        data: the line with its line end.
    """

    id: str
    custom_id: str
    failed: bool
    data: bytes

    @property
    def reason(self) -> str:
        """Why a row has no answer, for people."""
        fields = json.loads(self.data)
        error = fields["error"] or fields["response"]["body"]["error"]
        return str(error["message"])


def row_of(line: Line, answer: Result | Exception) -> Row:
    """The row of what `run_batch` yields for a request."""
    job = line.id
    if isinstance(answer, Result):
        job = answer.job
        refused = of_result(answer)
        if refused is None:
            return _responded(line, 200, job, Completion(job, line.model).whole(answer))
    elif isinstance(answer, ApiError):
        refused = answer
    elif isinstance(answer, SailqError):
        refused = api_error(answer)
    else:
        refused = api_error(SailqError(f"This request cannot be read: {type(answer).__name__}: {answer}."))
    return _responded(line, refused.status, job, refused.body)


def unanswered(line: Line, code: str, message: str) -> Row:
    """The row of a request that the batch did not come to."""
    return _row(line, {"response": None, "error": {"code": code, "message": message}}, failed=True)


def _responded(line: Line, status: int, job: str, body: dict[str, Any]) -> Row:
    response = {"status_code": status, "request_id": f"req_{job.removeprefix('batch_req_')}", "body": body}
    return _row(line, {"response": response, "error": None}, failed=status != 200)


def _row(line: Line, fields: dict[str, Any], *, failed: bool) -> Row:
    data = f"{as_line({'id': line.id, 'custom_id': line.custom_id, **fields})}\n".encode()
    return Row(line.id, line.custom_id, failed, data)


def _read(line: bytes) -> Row | None:
    try:
        fields = json.loads(line)
        response, error = fields["response"], fields["error"]
        name, custom_id = fields["id"], fields["custom_id"]
        failed = error is not None or response["status_code"] != 200
        if failed and not isinstance((error or response["body"]["error"])["message"], str):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    known = isinstance(name, str) and isinstance(custom_id, str)
    return Row(name, custom_id, failed, line + b"\n") if known else None


REQUESTS: Form[Row] = Form(b'{"id": "batch_req_', _read, lambda row: row.data, "--output-file")
"""The rows of a batch of requests."""
