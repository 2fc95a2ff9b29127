"""Errors in OpenAI's form, with their HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailq.shared.errors import (
    BadMedia,
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    NotFound,
    NotReplicated,
    QueueFull,
    SailqError,
    ServerUnavailable,
    TooLong,
    Unsupported,
)
from sailq.shared.jobs import Failure, Result

RETRY_SECONDS = 1
"""What `Retry-After` says if the queue is full or the server is away."""
_FINAL = {"x-should-retry": "false"}
"""OpenAI's clients then do not send the request again."""
_STATUS: Mapping[str, tuple[int, str, str]] = {
    BadRequest.code: (400, "invalid_request_error", "invalid_value"),
    Unsupported.code: (400, "invalid_request_error", "unsupported_value"),
    TooLong.code: (400, "invalid_request_error", "context_length_exceeded"),
    BadMedia.code: (422, "invalid_request_error", "invalid_media"),
    Cancelled.code: (409, "server_error", "cancelled"),
    NotFound.code: (409, "server_error", "cancelled"),  # somebody has deleted the job
    DeadlineExceeded.code: (504, "server_error", "deadline"),
    SailqError.code: (500, "server_error", "internal"),
}
"""sailq's code of an error: its HTTP status, and OpenAI's `type` and `code`."""


class ApiError(Exception):
    """An error response.

    Attributes:
        status: the HTTP status.
        body: OpenAI's `{"error": {"message", "type", "param", "code"}}`.
        headers: of the response.
    """

    def __init__(
        self, status: int, message: str, *, code: str, type: str = "invalid_request_error", param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": type, "param": param, "code": code}}


def api_error(error: SailqError) -> ApiError:
    """The response for an error of sailq's."""
    if isinstance(error, QueueFull):
        return unavailable(str(error), "queue_full")
    if isinstance(error, ServerUnavailable):
        return unavailable("The queue's server does not answer.", "server_unavailable")  # without its address
    if isinstance(error, NotReplicated):
        return unavailable("Too few replicas of the queue's server confirmed the job in time.", "not_replicated")
    return of_failure(Failure(code=error.code, message=str(error)))


def of_result(result: Result) -> ApiError | None:
    """The response for a job without a complete answer; None if it has one."""
    reason = result.finish_reason
    if result.error is None and reason in ("stop", "length"):
        return None
    return of_failure(result.error or Failure(code=reason, message=f"The answer ended early: {reason}."))


def of_failure(failure: Failure) -> ApiError:
    """The response for a failure of a job."""
    status, kind, code = _STATUS.get(failure.code, _STATUS[SailqError.code])
    final = failure.code in (Cancelled.code, DeadlineExceeded.code)
    return ApiError(status, failure.message, code=code, type=kind, headers=_FINAL if final else None)


def unavailable(message: str, code: str) -> ApiError:
    """503, with the request to try again."""
    return ApiError(503, message, code=code, type="server_error", headers={"Retry-After": str(RETRY_SECONDS)})


def unknown_model(name: str) -> ApiError:
    return ApiError(404, f"The model {name!r} does not exist: no worker has served it.", code="model_not_found",
                    param="model")
