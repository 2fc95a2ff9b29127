"""One error type per cause. `code` is the stable name in results and `--json` output."""

from __future__ import annotations

_MAX_QUOTED = 300


class SailqError(Exception):
    """Base of every error sailq raises on purpose; `str(error)` is one readable sentence."""

    code = "internal"


class BadRequest(SailqError):
    """The job, its messages or its options break the contract."""

    code = "bad_request"


class CodecError(BadRequest):
    """Bytes that are not a value of this protocol: wrong version, type, shape or size."""


class BadMedia(SailqError):
    """A clip or an image that cannot be read: missing, truncated, empty, or of impossible size."""

    code = "bad_media"


class TooLong(SailqError):
    """More tokens, or more vision patches, than the model's context holds."""

    code = "too_long"


class Unsupported(SailqError):
    """A model, message part, codec or option that is not supported."""

    code = "unsupported"


class DeviceFailed(SailqError):
    """A call to the device failed. The process ends, because the contents of the device's memory are then unknown."""


class DeadlineExceeded(SailqError):
    """The job's deadline passed before it finished."""

    code = "deadline"


class Cancelled(SailqError):
    """The job was cancelled by its producer."""

    code = "cancelled"


class ServerUnavailable(SailqError):
    """The Redis server cannot be reached, refuses the login, or is not a Redis server."""

    code = "server_unavailable"


class QueueFull(SailqError):
    """The server has no room for another job now."""

    code = "queue_full"


class NotReplicated(SailqError):
    """Too few replicas have confirmed a write in time. The primary has the write, and it is safe to repeat the call.

    Attributes:
        job: the id of the submitted job. Submit it again with this id.
    """

    code = "not_replicated"

    def __init__(self, message: str, job: str) -> None:
        super().__init__(message)
        self.job = job


class NotFound(SailqError):
    """No such job or conversation: never submitted, deleted, or expired."""

    code = "not_found"


class WaitTimeout(SailqError):
    """The result did not arrive within the time the caller was ready to wait; the job goes on."""

    code = "wait_timeout"


def quoted(text: str) -> str:
    """Untrusted text, made safe for a sentence or a log: shortened, and on one line."""
    short = text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in short)
