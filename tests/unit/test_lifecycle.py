"""A job's transitions in Redis."""

from __future__ import annotations

import redis
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.jobs import Result
from sailq.shared.lifecycle import Lifecycle
from sailq.shared.settings import Settings


def test_a_job_that_was_claimed_in_time_is_finished_whenever(redis_url: str, connection: redis.Redis) -> None:
    """`job_ttl` is the time that a job waits; the answer may take longer."""
    with Client(settings=Settings(redis_url=redis_url, job_ttl=30)) as client:
        handle = client.submit([{"role": "user", "content": "Hello"}])
    lifecycle = Lifecycle(connection, result_ttl=60, conversation_ttl=60)
    claim = lifecycle.claim(handle.job, "worker")
    assert not isinstance(claim, str)
    assert connection.ttl(keys.job(handle.job)) > 3600
    result = Result(job=handle.job, conversation=handle.conversation, turn=0, finish_reason="stop", finished_at=1.0)
    assert lifecycle.finish(result, attempt=claim.attempt)
    assert not connection.exists(keys.job(handle.job))
