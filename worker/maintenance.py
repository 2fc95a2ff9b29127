"""What one worker of the fleet at a time does for all: jobs that nobody runs go on, and RQ's registries stay small.

Hundreds of idle workers share a server, so a look is one script, and only what it finds costs more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from rq.intermediate_queue import IntermediateQueue
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ReadyJobRegistry
from rq.worker_registration import clean_worker_registry

from ..shared import keys
from ..shared.rqjob import Serializer
from .leases import LeasedJob, Leases

LOOK_SECONDS = 2
"""How often a worker tries to look."""
_LOOKED_SECONDS = 1
"""Shorter, so that a worker that came just after another one, which then died, does not leave a gap twice as long."""
_TIDY_SECONDS = 60
_TAKEN_SECONDS = 5
"""Within 10 s of a worker's death, between two looks, the job it had taken is on its queue again."""

# Jobs between their queue and their start, where a live worker leaves one for a moment, and then has a lease. RQ leaves
# one there for a minute, and counts it as a failure of the job's, which nobody has begun.
_LOOK = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return {0, 0, 0, {}} end
local tidy = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[3]) and 1 or 0
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local back, taken = {}, redis.call('LRANGE', KEYS[3], 0, -1)
local since, leased = {}, {}
for _, job in ipairs(taken) do since[job] = tonumber(redis.call('HGET', KEYS[5], job)) or now end
if #taken > 0 then
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], now, '+inf')) do
    leased[string.match(lease, '^[^:]*')] = true
  end
end
redis.call('DEL', KEYS[5])
for job, seen in pairs(since) do
  if now - seen > tonumber(ARGV[4]) and not leased[job] then
    redis.call('LREM', KEYS[3], 0, job)
    redis.call('LPUSH', KEYS[4], job)
    back[#back + 1] = job
  else
    redis.call('HSET', KEYS[5], job, string.format('%.6f', seen))
  end
end
redis.call('EXPIRE', KEYS[5], 60)
return {tidy, redis.call('ZCOUNT', KEYS[6], 0, now), redis.call('ZCARD', KEYS[7]), back}
"""

_log = logging.getLogger("sailq.worker")


class Maintenance:
    """Looks after one queue."""

    def __init__(self, queue: Queue, worker: str, on_failure: Sequence[Callable[..., Any]]) -> None:
        """`on_failure`: RQ's exception handlers, called for each job whose worker died."""
        self._queue, self._worker, self._on_failure = queue, worker, list(on_failure)
        self._leases = self._registry(Leases)
        self._ready = self._registry(ReadyJobRegistry)
        taken = IntermediateQueue.get_intermediate_queue_key(queue.key)
        self._keys = [keys.maintenance(queue.name), keys.tidied(queue.name), taken, queue.key, keys.taken(queue.name),
                      self._leases.key, self._ready.key]
        self._look = queue.connection.register_script(_LOOK)

    def run(self) -> None:
        """Unless another worker has just looked: put back what was taken and is not begun, and give the jobs of dead
        workers to others, or end those that have had their attempts. To be called every `LOOK_SECONDS`."""
        tidy, ended, ready, back = self._look(
            keys=self._keys, args=[self._worker, _LOOKED_SECONDS, _TIDY_SECONDS, _TAKEN_SECONDS]
        )
        for job in back:
            _log.warning("job %s goes back to its queue: whoever took it never began it", job.decode(errors="replace"))
        if ended:
            self._leases.cleanup(exception_handlers=self._on_failure)
        if ready:  # a turn whose time has come, and whose place in the queue a race has cost
            self._ready.cleanup()
        if tidy:
            for kind in (FinishedJobRegistry, FailedJobRegistry):
                self._registry(kind).cleanup()
            clean_worker_registry(self._queue)

    def _registry(self, kind: type[Any]) -> Any:
        return kind(self._queue.name, connection=self._queue.connection, job_class=LeasedJob, serializer=Serializer)
