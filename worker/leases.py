"""Who runs what until when: RQ's registry of started jobs, by the server's clock.

RQ scores a lease by the clock of the box that takes it, and ends it by the clock of the box that looks. Boxes without a
battery for their clocks disagree by any amount: one that is late would have its jobs run again by every other.
"""

from __future__ import annotations

import logging
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import StartedJobRegistry

from ..shared import keys
from ..shared.connection import ServerClock
from ..shared.errors import quoted
from ..shared.rqjob import LockedJob

_TAKEN_SECONDS = 5
"""Within 10 s of a worker's death, between two looks, the job it had taken is on its queue again."""
_PUT_BACK = """
local taken = redis.call('LRANGE', KEYS[1], 0, -1)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local since, leased = {}, {}
for _, job in ipairs(taken) do since[job] = tonumber(redis.call('HGET', KEYS[3], job)) or now end
redis.call('DEL', KEYS[3])
if #taken == 0 then return {} end
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], now, '+inf')) do
  leased[string.match(lease, '^[^:]*')] = true
end
local back = {}
for job, seen in pairs(since) do
  if now - seen > tonumber(ARGV[1]) and not leased[job] then
    redis.call('LREM', KEYS[1], 0, job)
    redis.call('LPUSH', KEYS[2], job)
    back[#back + 1] = job
  else
    redis.call('HSET', KEYS[3], job, string.format('%.6f', seen))
  end
end
redis.call('EXPIRE', KEYS[3], 60)
return back
"""

_log = logging.getLogger("sailq.worker")


class Leases(StartedJobRegistry):
    """An entry `job:execution` for each lease, scored with its end in seconds since the epoch."""

    clock: ServerClock
    """Set once by a worker process at start."""

    def add_execution(self, execution: Execution, pipeline: Pipeline, ttl: int = 0, xx: bool = False) -> int:
        added: int = pipeline.zadd(self.key, {execution.composite_key: self.clock.now() + ttl}, xx=xx)
        return added

    def cleanup(self, timestamp: float | None = None, exception_handlers: list[Any] | None = None) -> None:
        """Give the jobs whose leases have ended to other workers, or end those that have had their attempts."""
        end = self.clock.now() if timestamp is None else timestamp
        for entry in self.connection.zrangebyscore(self.key, 0, end):
            if not _is_lease(entry):  # RQ would stop at it, and look after no lease any more
                _log.warning("dropped %r from the leases: it is none", entry[:64])
                self.connection.zrem(self.key, entry)
        super().cleanup(end, exception_handlers)


class TakenJobs:
    """Jobs between their queue and their start, where a live worker leaves one for a moment, and then has a lease.

    RQ leaves one there for a minute, and counts it as a failure of the job's, which nobody has begun.
    """

    def __init__(self, queue: Queue, leases: Leases, connection: Redis) -> None:
        taken = IntermediateQueue.get_intermediate_queue_key(queue.key)
        self._keys = [taken, queue.key, keys.taken(queue.name), leases.key]
        self._put_back = connection.register_script(_PUT_BACK)

    def cleanup(self) -> None:
        """Put those that nobody begins in front of their queue. To be called every few seconds."""
        for job in self._put_back(keys=self._keys, args=[_TAKEN_SECONDS]):
            _log.warning("job %s goes back to its queue: whoever took it never began it", job.decode(errors="replace"))


class LeasedJob(LockedJob):
    """A job as a worker takes it."""

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> RQJob:
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except NoSuchJobError:  # RQ passes over it in silence
            _log.warning("dropped %s: it expired, or nobody submitted it", quoted(id))
            raise

    @property
    def started_job_registry(self) -> Leases:
        return Leases(self.origin, connection=self.connection, job_class=RQJob, serializer=self.serializer)


def _is_lease(entry: bytes) -> bool:
    try:
        return len(entry.decode().split(":")) == 2
    except UnicodeDecodeError:
        return False
