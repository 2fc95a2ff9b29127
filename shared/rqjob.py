"""RQ's Job, locked down: msgpack only, one function, no callbacks, no webhooks.

A stock RQ worker runs any importable function that a job names, and unpickles whatever it is given. Both
sides use this class for every queue, worker and fetch, so that neither can happen, whoever wrote the job.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job as RQJob

from .codec import pack, unpack
from .errors import BadRequest, Unsupported, quoted

FUNCTION = "sailq.run"
"""The only function name that a worker accepts; its one argument is the sailq job's id."""
MAX_RQ_BYTES = 8 * 1024
_MAX_INFLATED_BYTES = 1024 * 1024
"""What RQ may unpack of a job's compressed data before it looks at them."""
_MAX_NUMBER = 2**31
"""Seconds, or times: more than Redis takes as a time to live ends an execution in mid-air."""
_NUMBERS = ("timeout", "result_ttl", "failure_ttl", "ttl", "number_of_retries", "retries_left")
_FIELDS = frozenset(name.encode() for name in (
    "data", "origin", "description", "status", "worker_name",
    "created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat",
    "dependency_ids", "allow_dependency_failures", "enqueue_at_front", "enqueue_at_front_on_retry", *_NUMBERS,
))
"""What sailq uses of a job's record. By the rest, RQ would call functions and URLs, and repeat jobs."""
FAILURE_TTL = 7 * 86_400
"""Seconds that RQ's failed registry remembers a job; RQ's own default is a year."""
MAX_ATTEMPTS = 3
"""A job that has begun so often without coming to a result gets an error instead of another worker."""


class Serializer:
    """msgpack, bounded. RQ wants a class with `dumps` and `loads`."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return pack(value, MAX_RQ_BYTES)

    @staticmethod
    def loads(data: bytes) -> Any:
        return unpack(data, MAX_RQ_BYTES)


class LockedJob(RQJob):
    """A job that can only ever call the function its worker registered under `FUNCTION`."""

    registered: Callable[[str], None] | None = None
    """Set once by a worker process at start; a producer leaves it None."""

    def __init__(self, id: str | None = None, connection: Redis | None = None, serializer: Any = None) -> None:
        super().__init__(id, connection, Serializer)

    def restore(self, raw_data: Any) -> Any:
        """Raises BadRequest for a record that neither RQ nor sailq wrote: any producer can write it."""
        known = {name: value for name, value in raw_data.items() if name in _FIELDS}
        _check_inflated(known.get(b"data", b""))
        try:
            _check_dependencies(known.get(b"dependency_ids"))
            super().restore(known)
        except NoSuchJobError:
            raise
        except Exception:  # each field is read by code of its own
            raise BadRequest("This job's record is not one that RQ wrote.") from None
        if any(abs(getattr(self, name) or 0) > _MAX_NUMBER for name in _NUMBERS):
            raise BadRequest("This job's record has a number that is out of any range.")
        if self.failure_ttl is None:
            self.failure_ttl = FAILURE_TTL

    @property
    def func(self) -> Callable[[str], None]:
        if self.data != Serializer.dumps([FUNCTION, None, [self.id], {}]):
            name = str(self.func_name)
            if name != FUNCTION:
                raise Unsupported(f"This worker runs {FUNCTION!r} alone, not {quoted(name)!r}.")
            raise BadRequest(f"{FUNCTION!r} takes this job's own id and nothing else.")
        registered = type(self).registered
        if registered is None:
            raise Unsupported("This process runs no jobs.")
        return registered


def _check_inflated(data: bytes) -> None:
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(data, _MAX_INFLATED_BYTES)
    except zlib.error:
        return  # RQ takes it as it is
    if inflater.unconsumed_tail:
        raise BadRequest("This job's record unpacks to more than any job's.")


def _check_dependencies(names: bytes | None) -> None:
    """A turn waits for the one before it, and for no other."""
    waits_for = json.loads(names or b"[]")
    if not isinstance(waits_for, list) or len(waits_for) > 1 or not all(isinstance(name, str) for name in waits_for):
        raise ValueError(waits_for)
