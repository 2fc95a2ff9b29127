"""Fixtures for the scripts: a worker's job store, a recovery run, a full server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from answering import TTLS
from attempts import LAST_LOOK, LOOKED, QUEUE
from hypothesis import HealthCheck, settings
from rq import Queue

from sailq.shared.connection import ServerClock
from sailq.shared.rqjob import Serializer
from sailq.worker.queue.job_store import JobStore
from sailq.worker.queue.refusals import Identity, Refusals

# A busy machine takes its time for an example, and to make one.
settings.register_profile("sailq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sailq")


@pytest.fixture
def store(connection: redis.Redis) -> JobStore:
    return JobStore(connection, connection, TTLS, "test")


@pytest.fixture
def look(connection: redis.Redis, store: JobStore) -> Callable[..., None]:
    """Runs the recovery, even if the last one was a moment ago. Returns its results."""
    refusals = Refusals(store, ServerClock(connection), Identity("test", "cpu", ("sailq-tiny",)))

    def look(*, sweep: bool = False) -> None:
        connection.delete(LOOKED, *([LAST_LOOK] if sweep else []))
        refusals.recover()

    return look


@pytest.fixture
def queue(connection: redis.Redis) -> Queue:
    return Queue(QUEUE, connection=connection, serializer=Serializer)


@pytest.fixture
def full(connection: redis.Redis) -> Iterator[Callable[[], object]]:
    """Fills the server, for the rest of the test."""
    try:
        yield lambda: connection.config_set("maxmemory", 1)
    finally:
        connection.config_set("maxmemory", 0)
