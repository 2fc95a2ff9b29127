"""Calls that are sent again, after a lost reply or without a replica, take effect once. Lost messages are noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis
from answering import TTLS, Answerer, take

from sailq.producer import stream_listener, waiting
from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.errors import NotReplicated
from sailq.shared.jobs import Message, Result, TextPart, Turn
from sailq.shared.media.messages import Prepared
from sailq.shared.settings import Settings
from sailq.worker.queue.job_store import JobStore

MESSAGE = Message(role="user", content=(TextPart(text="Hi"),))
HELLO = Prepared((MESSAGE,), {}, 0)


@pytest.mark.parametrize("kept", [0, 500])
def test_a_result_that_is_sent_again_is_written_once(kept: int, client: Client, connection: redis.Redis) -> None:
    """Also of a job of RQ's own, whose hash is kept."""
    connection.xgroup_create(keys.RESULTS, "reader", mkstream=True)
    store = JobStore(connection, connection, TTLS, "test")
    job = client.submit_prepared(HELLO, conversation="talk").job
    connection.hset(keys.job(job), "result_ttl", kept)
    claim = take(store, connection, job)
    result = Result(job=job, conversation="talk", turn=0, text="Hello", finish_reason="stop", finished_at=1.0)
    turn = Turn(job=job, turn=0, messages=(MESSAGE,), text="Hello")
    assert all(store.finish(job, claim.execution, result, turn) for _ in range(3))
    told = [fields for _, fields in connection.xrange(keys.inbox(client.inbox.name)) if fields[b"job"] == job.encode()]
    assert [len(told), len(client.history("talk")), connection.xlen(keys.RESULTS)] == [1, 1, 1]
    assert client.result(job) == result and connection.ttl(keys.result(job)) > 0
    other = result.model_copy(update={"text": "Another's"})
    assert not store.finish(job, claim.execution, other) and client.result(job) == result


def test_a_job_that_is_submitted_again_is_stored_once(client: Client, answerer: Answerer) -> None:
    first = client.submit_prepared(HELLO, conversation="talk")
    second = client.submit_prepared(HELLO, conversation="talk")
    for one in (first, second):
        assert client.submit_prepared(HELLO, conversation="talk", job=one.job) == one
    answerer.answer(first.job, "Hi")
    assert client.submit_prepared(HELLO, conversation="talk", job=first.job).job == first.job
    assert client.connection.lrange(keys.waiting(keys.queue(client.settings.model)), 0, -1) == [second.job.encode()]


def test_a_submission_without_replicas_raises_an_error_with_its_id(redis_url: str, connection: redis.Redis) -> None:
    with Client(settings=Settings(redis_url=redis_url, sync_replicas=2)) as client:
        with pytest.raises(NotReplicated, match="0 of 2 replicas .* within 1 s") as error:
            client.submit_prepared(HELLO)
        assert error.value.code == "not_replicated" and connection.exists(keys.job(error.value.job))


@pytest.mark.parametrize("kept", [0, 500])
def test_an_end_without_an_inbox_entry_is_noticed(
    kept: int, client: Client, connection: redis.Redis, answerer: Answerer, later: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the entry was lost with the primary."""
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.2)
    job = client.submit_prepared(HELLO).job
    connection.hset(keys.job(job), mapping={"result_ttl": kept, "inbox": "nobodys"})
    later(answerer.answer, job, "Hi")
    assert client.wait(job, 60).text == "Hi"


@pytest.mark.parametrize("kept", [0, 500])
def test_asyncio_an_end_without_an_inbox_entry_is_noticed(
    kept: int, redis_url: str, connection: redis.Redis, answerer: Answerer, later: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_listener, "LOOK_SECONDS", 0.2)

    async def story() -> str:
        async with AsyncClient(redis_url) as client:
            job = (await client.submit_prepared(HELLO)).job
            connection.hset(keys.job(job), mapping={"result_ttl": kept, "inbox": "nobodys"})
            later(answerer.answer, job, "Hi")
            return (await client.wait(job, 60)).text

    assert asyncio.run(story()) == "Hi"
