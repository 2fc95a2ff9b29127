"""Who runs what until when: RQ's registry of started jobs, by the server's clock.

RQ scores a lease by the clock of the box that takes it, and ends it by the clock of the box that looks. Boxes without a
battery for their clocks disagree by any amount: one that is late would have its jobs run again by every other.
"""

from __future__ import annotations

import logging
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.registry import StartedJobRegistry

from ..shared.connection import ServerClock
from ..shared.errors import BadRequest, quoted
from ..shared.rqjob import LockedJob
from .bounded_read import TooLarge, bounded_read

_MAX_RECORD_BYTES = 2**20
"""What RQ's record of a job may take on the server. It takes 592 bytes."""

_log = logging.getLogger("sailq.worker")


class Leases(StartedJobRegistry):
    """An entry `job:execution` for each lease, scored with its end in seconds since the epoch."""

    clock: ServerClock
    """Set once by a worker process at start."""

    def add_execution(self, execution: Execution, pipeline: Pipeline, ttl: int = 0, xx: bool = False) -> int:
        added: int = pipeline.zadd(self.key, {execution.composite_key: self.clock.now() + ttl}, xx=xx)
        return added

    def ended(self) -> list[bytes]:
        """The entries of leases that have ended."""
        entries: list[bytes] = self.connection.zrangebyscore(self.key, 0, self.clock.now())
        return entries

    def cleanup(self, timestamp: float | None = None, exception_handlers: list[Any] | None = None) -> None:
        """Give the jobs whose leases have ended to other workers, or end those that have had their attempts."""
        end = self.clock.now() if timestamp is None else timestamp
        for entry in self.connection.zrangebyscore(self.key, 0, end):
            if not _is_lease(entry):  # RQ would stop at it, and look after no lease any more
                _log.warning("dropped %r from the leases: it is none", entry[:64])
                self.connection.zrem(self.key, entry)
        super().cleanup(end, exception_handlers)


class LeasedJob(LockedJob):
    """A job as a worker takes it."""

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> RQJob:
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except NoSuchJobError:  # RQ passes over it in silence
            _log.warning("dropped %s: it expired, or nobody submitted it", quoted(id))
            raise

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """RQ beats here as a job begins, which says the same, and as it ends."""

    def refresh(self) -> None:
        """RQ's own reads a record of any size."""
        try:
            record = bounded_read(self.connection, _MAX_RECORD_BYTES, "HGETALL", self.key)
        except TooLarge:
            raise BadRequest("This job's record is larger than any that RQ wrote.") from None
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):  # else it says nothing of the job
                raise
            raise BadRequest("This job's record is not one that RQ wrote.") from None
        if not record:
            raise NoSuchJobError(f"No such job: {self.key}")
        self.restore(dict(zip(record[::2], record[1::2], strict=True)))

    @property
    def started_job_registry(self) -> Leases:
        return Leases(self.origin, connection=self.connection, job_class=RQJob, serializer=self.serializer)


def _is_lease(entry: bytes) -> bool:
    try:
        return len(entry.decode().split(":")) == 2
    except UnicodeDecodeError:
        return False
