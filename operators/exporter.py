"""The Prometheus metrics of the server: queues, failures, memory, and the number of workers.

One process exports them for all workers: the workers share the queues, and the metrics matter most if none is up.
"""

from __future__ import annotations

from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sailq.shared.errors import ServerUnavailable
from sailq.shared.metrics_server import PREFIX

from .fleet import Fleet, Snapshot

MOST_MODELS = 64
"""The most queues that are exported, longest first: a producer may name any model."""


class ServerState(Collector):
    """Reads the server's state at each scrape. If the server does not answer, exports only `server_up` 0."""

    def __init__(self, connection: redis.Redis) -> None:
        self._fleet = Fleet(connection)

    def collect(self) -> Iterator[Metric]:
        try:
            snapshot = self._fleet.snapshot()
        except ServerUnavailable:
            yield _gauge("server_up", "Whether the server answers.", 0)
            return
        yield _gauge("server_up", "Whether the server answers.", 1)
        yield _gauge("server_memory_used_bytes", "Memory that the server uses.", snapshot.memory_used)
        yield _gauge("server_memory_limit_bytes", "The server's maxmemory; 0: no limit.", snapshot.memory_limit)
        yield _gauge("clip_bytes", "Total size of the clips on the server.", snapshot.clip_bytes)
        yield _gauge("conversations", "Conversations on the server.", snapshot.conversations)
        yield from _of_models(snapshot)


def _of_models(snapshot: Snapshot) -> Iterator[Metric]:
    queues = sorted(snapshot.queues, key=lambda queue: -queue.waiting)[:MOST_MODELS]
    workers = [name for worker in snapshot.workers for name in worker.names]
    for name, about, values in (
        ("workers", "Live workers.", [workers.count(queue.model) for queue in queues]),
        ("queue_depth", "Jobs that wait for a worker.", [queue.waiting for queue in queues]),
        ("queue_oldest_wait_seconds", "How long the oldest job has waited; 0 if none waits.",
         [queue.oldest_wait or 0 for queue in queues]),
        ("queue_deferred", "Jobs that wait for an earlier turn or another job.", [queue.deferred for queue in queues]),
        ("queue_started", "Jobs that workers have claimed.", [queue.started for queue in queues]),
        ("failed_jobs", "Jobs that `sailq failed` lists.", [queue.failed for queue in queues]),
    ):
        family = GaugeMetricFamily(PREFIX + name, about, labels=("model",))
        for queue, value in zip(queues, values, strict=True):
            family.add_metric((queue.model,), value)
        yield family


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, about, value=value)
