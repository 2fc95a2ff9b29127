"""What one worker of the fleet at a time does for all: jobs that nobody runs go on, and RQ's registries stay small.

Hundreds of idle workers share a server, so a look is one script, and only what it finds costs more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ReadyJobRegistry
from rq.worker_registration import clean_worker_registry

from ..shared import keys
from ..shared.errors import SailqError
from ..shared.rqjob import Serializer
from .leases import LeasedJob, Leases

LOOK_SECONDS = 2
"""How often a worker tries to look."""
_LOOKED_SECONDS = 1
"""Shorter, so that a worker that came just after another one, which then died, does not leave a gap twice as long."""
_TIDY_SECONDS = 60
_TAKEN_SECONDS = 4
"""Within 10 s of a worker's death, between two looks, the job it had taken is on its queue again."""

# The taken jobs are those between their queue and their start, where a live worker leaves one for a moment, and then
# has a lease. RQ leaves one there for a minute, and counts it as a failure of the job's, which nobody has begun.
_LOOK = """
local looked, tidied, taken, queue, seen, leases, ready, finished, failed = unpack(KEYS)
local worker, looked_seconds, tidy_seconds, taken_seconds = unpack(ARGV)
if not redis.call('SET', looked, worker, 'NX', 'EX', looked_seconds) then return {0, 0, 0, {}} end
local tidy = redis.call('SET', tidied, worker, 'NX', 'EX', tidy_seconds) and 1 or 0
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local jobs, back = redis.call('LRANGE', taken, 0, -1), {}
if #jobs > 0 then
  local since, leased = {}, {}
  for _, job in ipairs(jobs) do since[job] = tonumber(redis.call('HGET', seen, job)) or now end
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', leases, now, '+inf')) do
    leased[string.match(lease, '^[^:]*')] = true
  end
  redis.call('DEL', seen)
  for job, at in pairs(since) do
    if now - at > tonumber(taken_seconds) and not leased[job] then
      redis.call('LREM', taken, 0, job)
      redis.call('LPUSH', queue, job)
      back[#back + 1] = job
    else
      redis.call('HSET', seen, job, string.format('%.6f', at))
    end
  end
  redis.call('EXPIRE', seen, 60)
end
for _, ended in ipairs({finished, failed}) do redis.call('ZREMRANGEBYSCORE', ended, 0, now) end
return {tidy, redis.call('ZCOUNT', leases, 0, now), redis.call('ZCARD', ready), back}
"""

_log = logging.getLogger("sailq.worker")


class Maintenance:
    """Looks after one queue."""

    def __init__(
        self, queue: Queue, worker: str, on_failure: Sequence[Callable[..., Any]],
        refuse: Callable[[str, SailqError], None],
    ) -> None:
        """`on_failure`: RQ's exception handlers, called for each job whose worker died. `refuse` ends a job whose
        record cannot be read."""
        self._queue, self._worker, self._on_failure, self._refuse = queue, worker, list(on_failure), refuse
        self._leases = self._registry(Leases)
        self._ready = self._registry(ReadyJobRegistry)
        taken = IntermediateQueue.get_intermediate_queue_key(queue.key)
        self._keys = [keys.maintenance(queue.name), keys.tidied(queue.name), taken, queue.key, keys.taken(queue.name),
                      self._leases.key, self._ready.key,
                      *(kind.key_template.format(queue.name) for kind in (FinishedJobRegistry, FailedJobRegistry))]
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
            self._drop_unreadable(self._leases.key, self._leases.ended())
            self._leases.cleanup(exception_handlers=self._on_failure)
        if ready:  # a turn whose time has come, and whose place in the queue a race has cost
            self._drop_unreadable(self._ready.key, self._queue.connection.zrange(self._ready.key, 0, -1))
            self._ready.cleanup()
        if tidy:
            clean_worker_registry(self._queue)

    def _drop_unreadable(self, registry: str, entries: Sequence[bytes]) -> None:
        """RQ stops at the first job whose record it cannot read, and no job behind it would ever go on."""
        for entry in entries:
            job_id = entry.decode(errors="replace").partition(":")[0]
            try:
                LeasedJob.fetch(job_id, connection=self._queue.connection, serializer=Serializer)
            except NoSuchJobError:
                continue  # RQ passes over it
            except SailqError as error:
                self._queue.connection.zrem(registry, entry)
                self._refuse(job_id, error)

    def _registry(self, kind: type[Any]) -> Any:
        return kind(self._queue.name, connection=self._queue.connection, job_class=LeasedJob, serializer=Serializer)
