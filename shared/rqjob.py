"""A job in RQ's form: its record, its call, and the features of RQ that sailq supports.

`rq.Queue("sailq3-MODEL", serializer=Serializer).enqueue("sailq.answer", messages=[...], options={...})` is all that a
backend needs. sailq's own client makes the same call. No job can make a worker unpickle, import or call anything else.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from rq.defaults import DEFAULT_RESULT_TTL
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.results import Result as RQResult
from rq.utils import utcformat, utcparse

from . import keys
from .codec import MAX_RECORD_BYTES, VERSION, pack, unpack
from .errors import BadRequest, CodecError, SailqError, Unsupported, quoted
from .jobs import Job, Result, parse
from .msgpack_limits import MAX_VALUES

FUNCTION = "sailq.answer"
"""The one function that a worker runs."""
FAILURE_TTL = 7 * 86_400
"""The default seconds that a failed job is kept for a retry. RQ's own default is a year."""
RESULT_TTL = DEFAULT_RESULT_TTL
"""The default seconds that RQ's record of any other job is kept after its end."""
MAX_ATTEMPTS = 3
"""A job that has had so many attempts without a result ends with an error."""
_ARGUMENTS = frozenset({"messages", "options", "deadline", "priority", "stream", "metadata"})
_REFUSED = {
    "success_callback_name": "callbacks", "failure_callback_name": "callbacks", "stopped_callback_name": "callbacks",
    "webhooks": "webhooks", "repeats_left": "repeat", "repeat_intervals": "repeat", "rate_limit_key": "rate_limit",
    "group_id": "groups", "retries_left": "retry: it runs a job again by itself when a worker dies",
}
"""Fields of RQ's record for features that sailq does not support."""


class Serializer:
    """RQ's serializer for sailq's jobs: msgpack with limits. Pass it to every `Queue` and `Job.fetch`."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return pack(value, 2 * MAX_RECORD_BYTES, 2 * MAX_VALUES)

    @staticmethod
    def loads(data: bytes) -> Any:
        return unpack(data, 2 * MAX_RECORD_BYTES, 2 * MAX_VALUES)


def record(job: Job, *, ttl: int) -> dict[str, Any]:
    """The fields of RQ's hash for a job that sailq's client submits. `ttl`: seconds that it may wait. Raises
    CodecError."""
    call = job.model_dump(include=set(_ARGUMENTS))
    pack(call, MAX_RECORD_BYTES)
    made = RQJob.create(
        FUNCTION, kwargs={**call, "version": VERSION}, id=job.id, serializer=Serializer, origin=keys.queue(job.model),
        description=f"sailq {job.conversation}", timeout=-1, result_ttl=0, failure_ttl=FAILURE_TTL, ttl=ttl,
        connection=_NO_CONNECTION,
    )
    made.created_at = made.enqueued_at = _time(job.submitted_at)
    made.enqueue_at_front = job.priority == "high"
    return {name: value for name, value in made.to_dict().items() if value != "" and name != "status"}


_NO_CONNECTION: Any = object()
"""RQ requires a connection to make a job, but does not use it to serialize the job."""


def at(seconds: float) -> str:
    """A time in RQ's text format."""
    return utcformat(_time(seconds))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def is_own(fields: Mapping[bytes, bytes]) -> bool:
    """Whether sailq's client wrote this hash of RQ's. If not, a backend called `enqueue`."""
    return b"conversation" in fields


def read_job(
    job_id: str, queue: str, fields: Mapping[bytes, bytes], read_messages: Callable[[Any], Any] | None = None
) -> Job:
    """Reads the job in RQ's hash, from sailq's client or from `enqueue`. Raises BadRequest, CodecError or Unsupported.

    `read_messages`: converts the messages of a job from `enqueue` to records.
    """
    for name, what in _REFUSED.items():
        if fields.get(name.encode(), b"") not in {b"", b"[]"}:
            raise Unsupported(f"sailq does not support {what}.")
    call = _call(fields.get(b"data", b""))
    version = call.pop("version", VERSION)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CodecError(f"This job has protocol version {quoted(repr(version))}; sailq reads 1 to {VERSION}.")
    if unknown := [name for name in call if name not in _ARGUMENTS]:
        raise BadRequest(f"{FUNCTION} takes {', '.join(sorted(_ARGUMENTS))}, not {quoted(str(unknown[0]))!r}.")
    if read_messages is not None and "messages" in call:
        call["messages"] = read_messages(call["messages"])
    conversation, turn, created_at = (
        fields.get(name, default).decode(errors="replace")
        for name, default in ((b"conversation", job_id.encode()), (b"turn", b""), (b"created_at", b""))
    )
    return parse(Job, {
        **call, "id": job_id, "conversation": conversation, "turn": _number(turn),
        "model": queue.removeprefix(keys.queue("")), "submitted_at": _seconds(created_at),
    })


def queue_of(fields: Mapping[bytes, bytes]) -> str:
    """The name of the queue in RQ's hash of a job; empty if it has none."""
    return fields.get(b"origin", b"").decode(errors="replace")


def with_job(result: Result, queue: str, fields: Mapping[bytes, bytes]) -> Result:
    """The result of a job that nobody ran, with what can be read of the job: conversation, turn, model and metadata."""
    with suppress(SailqError):
        job = read_job(result.job, queue, fields)
        return result.model_copy(update={
            "conversation": job.conversation, "turn": job.turn, "model": job.model, "metadata": job.metadata,
        })
    return result


def _call(data: bytes) -> dict[str, Any]:
    inflater = zlib.decompressobj()
    with suppress(zlib.error):  # RQ accepts uncompressed data, too
        data = inflater.decompress(data, MAX_RECORD_BYTES + 1)
    try:
        function, instance, args, kwargs = unpack(data, MAX_RECORD_BYTES)
    except (TypeError, ValueError):
        raise BadRequest("This job's data is not a function call that RQ wrote.") from None
    if not isinstance(function, str) or function != FUNCTION:
        raise Unsupported(f"This worker runs only {FUNCTION!r}, not {quoted(str(function))!r}.")
    # An array is neither true nor false.
    if instance is not None or not isinstance(args, list) or args or not isinstance(kwargs, dict):
        raise BadRequest(f"{FUNCTION} takes its arguments by name: messages=..., options=....")
    return kwargs


def _number(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


def _seconds(text: str) -> float:
    try:
        return max(0.0, utcparse(text).timestamp())
    except (ValueError, OverflowError):
        raise BadRequest("This job's record is not one that RQ wrote.") from None


def rq_status(result: Result) -> str:
    """The status that RQ's `get_status()` returns for a job with this result. Only an error that may pass is
    `failed`."""
    if result.error is not None and result.error.may_pass:
        return JobStatus.FAILED.value
    return JobStatus.CANCELED.value if result.finish_reason == "cancelled" else JobStatus.FINISHED.value


def rq_result(result: Result) -> list[Any]:
    """The fields and values of RQ's result, for `return_value()`, `is_failed` and `exc_string`."""
    failed = rq_status(result) == "failed"  # no return value, so that any serializer can read it, like RQ's own
    kind = RQResult.Type.FAILED if failed else RQResult.Type.SUCCESSFUL
    made = RQResult(
        result.job, kind, _NO_CONNECTION, return_value=None if failed else result.model_dump(), serializer=Serializer,
        worker_name=result.worker, exc_string=None if result.error is None else result.error.message,
    )
    return [part for field in made.serialize().items() for part in field]
