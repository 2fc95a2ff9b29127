"""RQ's Job, locked down: msgpack only, one function, no callbacks, no webhooks.

A stock RQ worker runs any importable function that a job names, and unpickles whatever it is given. Both
sides use this class for every queue, worker and fetch, so that neither can happen, whoever wrote the job.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from redis import Redis
from rq.job import Job as RQJob

from .codec import pack, unpack
from .errors import BadRequest, Unsupported

FUNCTION = "sailq.run"
"""The only function name that a worker accepts; its one argument is the sailq job's id."""
MAX_RQ_BYTES = 8 * 1024
_MAX_INFLATED_BYTES = 1024 * 1024
"""What RQ may unpack of a job's compressed fields before it looks at them: data, or a failure's traceback."""
FAILURE_TTL = 7 * 86_400
"""Seconds that RQ's failed registry remembers a job; RQ's own default is a year."""
MAX_ATTEMPTS = 3
"""A job whose workers died this often gets an error result instead of another worker."""


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
        for name in (b"data", b"exc_info"):
            _check_inflated(raw_data.get(name, b""))
        super().restore(raw_data)
        # Both are read from the job's hash, which any producer can write.
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
        if self.failure_ttl is None:
            self.failure_ttl = FAILURE_TTL

    @property
    def func(self) -> Callable[[str], None]:
        if self.func_name != FUNCTION or self.instance is not None:
            raise Unsupported(f"This worker runs {FUNCTION!r} alone, not {str(self.func_name)[:100]!r}.")
        if self.kwargs or len(self.args) != 1 or not isinstance(self.args[0], str):
            raise BadRequest(f"{FUNCTION!r} takes a job's id and nothing else.")
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
