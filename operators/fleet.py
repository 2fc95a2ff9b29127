"""Reads what operators need: workers, queues, failures and memory. Changes nothing.

RQ's `registry.count` and `get_job_ids` also delete expired jobs, so the sizes are read from RQ's keys.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice

import redis
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import DeferredJobRegistry, FailedJobRegistry, StartedJobRegistry
from rq.utils import utcparse

from sailq.shared import keys
from sailq.shared.connection import ServerClock, server_errors
from sailq.shared.workers import WorkerInfo, live_workers

_OLDEST_AMONG = 16
"""How many jobs at a queue's head are checked for the oldest: priority jobs go before older ones."""
MEMORY_SAMPLE = 20_000
"""The most keys that `memory_by_kind` samples."""


@dataclass(frozen=True)
class QueueInfo:
    """The queue of one model. `oldest_wait`: seconds that the oldest of the jobs near the head has waited."""

    model: str
    waiting: int
    oldest_wait: float | None
    deferred: int
    started: int
    failed: int


@dataclass(frozen=True)
class Snapshot:
    """The state of the fleet. `clip_bytes`: see `keys.CLIP_BYTES`. `memory_limit`: bytes; 0 means no limit."""

    workers: list[WorkerInfo]
    queues: list[QueueInfo]
    conversations: int
    clip_bytes: int
    memory_used: int
    memory_limit: int
    server: str


@dataclass(frozen=True)
class MemoryKind:
    """The sampled keys of one kind: their number and bytes."""

    kind: str
    keys: int
    bytes: int


class Fleet:
    """Reads the state of all workers and queues of one server. Raises ServerUnavailable."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._clock = ServerClock(connection)

    def snapshot(self) -> Snapshot:
        workers = live_workers(self._connection)
        with server_errors(self._connection):
            models = {name.decode() for name in self._connection.smembers(keys.MODELS)}
            models |= {name for worker in workers for name in worker.names}
            # A model may have jobs before it has a worker.
            ours = Queue.redis_queue_namespace_prefix + keys.queue("")
            queues = {name.decode() for name in self._connection.smembers(Queue.redis_queues_keys)}
            models |= {name.removeprefix(ours) for name in queues if name.startswith(ours)}
            info = self._connection.info()
            version = info.get("valkey_version", info["redis_version"])
            return Snapshot(
                workers=workers,
                queues=[self._queue(model) for model in sorted(models)],
                conversations=self._connection.zcard(keys.CONVERSATIONS),
                clip_bytes=int(self._connection.get(keys.CLIP_BYTES) or 0),
                memory_used=info["used_memory"],
                memory_limit=info.get("maxmemory", 0),
                server=f"{info.get('server_name', 'redis')} {version}",
            )

    def memory_by_kind(self) -> list[MemoryKind]:
        """The kinds of keys by the memory they take, largest first, in a sample of at most `MEMORY_SAMPLE` keys."""
        counts: dict[str, int] = defaultdict(int)
        sizes: dict[str, int] = defaultdict(int)
        with server_errors(self._connection):
            found = islice(self._connection.scan_iter(count=1000), MEMORY_SAMPLE)
            while some := list(islice(found, 1000)):
                with self._connection.pipeline(transaction=False) as pipeline:
                    for key in some:
                        pipeline.memory_usage(key)
                    for key, size in zip(some, pipeline.execute(), strict=True):
                        kind = ":".join(key.decode(errors="replace").split(":")[:2])
                        counts[kind] += 1
                        sizes[kind] += size or 0
        kinds = [MemoryKind(kind, counts[kind], sizes[kind]) for kind in counts]
        return sorted(kinds, key=lambda kind: -kind.bytes)

    def _queue(self, model: str) -> QueueInfo:
        name = keys.queue(model)
        queue = Queue.redis_queue_namespace_prefix + name
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.llen(queue)
            pipeline.lrange(queue, 0, _OLDEST_AMONG - 1)
            for registry in (DeferredJobRegistry, StartedJobRegistry, FailedJobRegistry):
                pipeline.zcard(registry.key_template.format(name))
            waiting, head, deferred, started, failed = pipeline.execute()
            for job in head:
                pipeline.hget(RQJob.key_for(job.decode()), "enqueued_at")
            times = [utcparse(at.decode()).timestamp() for at in pipeline.execute() if at]
        oldest = max(0.0, self._clock.now() - min(times)) if times else None
        return QueueInfo(model, waiting, oldest, deferred, started, failed)
