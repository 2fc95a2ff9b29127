"""Foreign keys and records stop no script half way and cost no job an attempt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from answering import Answerer
from attempts import (
    CLIP,
    HELLO,
    PIXELS,
    QUEUE,
    abandon,
    claim,
    claimed,
    clip_job,
    result,
    status,
    turn,
)
from rq import Queue

from sailq.operators.failures import Failures
from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.producer.submission import Submitter
from sailq.shared import keys
from sailq.shared.errors import BadRequest, NotFound
from sailq.shared.rqjob import MAX_ATTEMPTS
from sailq.shared.settings import Settings
from sailq.worker.queue.job_store import JobStore

# Records of jobs that other programs have changed

GARBLED = ["nan", "-1000", "[1e999]", "9" * 5000, "inf", "-nan", "0x7", '[1e999, {"a": 1}]', "[" * 2000, '{"a": 1}']


@pytest.mark.parametrize("when", ["before it is claimed", "while it runs"])
@pytest.mark.parametrize("field", ["attempt", "spent", "history"])
def test_a_garbled_record_loses_no_job_and_gives_it_no_more_attempts(
    field: str, when: str, connection: redis.Redis, queue: Queue, store: JobStore, look: Callable[..., None]
) -> None:
    for value in GARBLED:
        job = queue.enqueue("sailq.answer", messages=HELLO).id
        if when == "before it is claimed":
            connection.hset(keys.job(job), field, value)
        attempts = 0
        while (one := claim(store)) is not None:
            assert one.job == job and attempts < 2 * MAX_ATTEMPTS
            assert not one.last or store.begin(one)
            attempts += 1
            if when == "while it runs" and attempts == 1:
                connection.hset(keys.job(job), field, value)
                assert store.release(one, "it broke")
                continue
            abandon(connection, one)
            look()
        # A record that was garbled during the attempt has lost at most this attempt.
        assert attempts <= MAX_ATTEMPTS + (when == "while it runs"), value
        assert connection.exists(keys.result(job)), value
        assert connection.zcard(keys.LEASES) == 0 and status(connection, job) == "failed"


def test_a_record_without_a_queue_does_not_stop_recovery(
    client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None]
) -> None:
    client.submit(HELLO)
    one = claimed(store)
    waits = client.submit(HELLO).job
    connection.hset(keys.job("evil"), mapping={"status": "started", "execution": "abc"})
    connection.hset(keys.job("evil2"), mapping={"status": "deferred", "conversation": "c"})
    connection.zadd(keys.LEASES, {"evil:abc": 1})
    connection.zadd(f"rq:deferred:{QUEUE}", {"evil2": 1})
    abandon(connection, one)
    look()
    look()
    assert [status(connection, job) for job in (one.job, waits)] == ["queued", "queued"]


@pytest.mark.parametrize(("fields", "cancelled"), [
    ({"meta": "x"}, None),  # the record that RQ's `save_meta` writes after the job was deleted
    ({"status": "queued"}, "cancelled"),
    ({"status": "started"}, "cancelled"),
    ({"status": "failed"}, "cancelled"),
])
def test_a_record_with_little_of_a_job_raises_typed_errors(
    fields: dict[str, str], cancelled: str | None, client: Client, connection: redis.Redis
) -> None:
    connection.hset(keys.job("x"), mapping=fields)
    failures = Failures(connection, Settings())
    with pytest.raises(BadRequest if fields.get("status") == "failed" else NotFound):
        failures.retry("x")
    if cancelled is None:
        with pytest.raises(NotFound):
            client.cancel("x")
    else:
        assert client.cancel("x") == cancelled and client.wait("x", 60).finish_reason == "cancelled"
    connection.hset(keys.job("x"), "status", "failed")
    failures.drop("x")
    assert not connection.exists(keys.job("x"))


@pytest.mark.parametrize(("text", "number"), [("12345", 12346), ("9999999999", 1), ("-1", 1), ("1e3", 1), ("", 1)])
def test_a_job_may_have_many_attempts(
    text: str, number: int, client: Client, connection: redis.Redis, store: JobStore
) -> None:
    connection.hset(keys.job(client.submit(HELLO).job), "attempt", text)
    assert claimed(store).attempt == number


# Keys of another type

REGISTRIES = ["rq:deferred", "rq:canceled", "rq:scheduled", "rq:ready"]


@pytest.mark.parametrize("registry", [*REGISTRIES, "sailq:leases"])
def test_a_job_key_that_is_not_a_hash_does_not_stop_recovery(
    registry: str, client: Client, connection: redis.Redis, queue: Queue, store: JobStore, look: Callable[..., None]
) -> None:
    connection.set(keys.job("evil"), "x")
    first, cancelled = client.submit(HELLO).job, queue.enqueue("sailq.answer", messages=HELLO)
    one = claimed(store)
    if registry == "sailq:leases":
        connection.zadd(keys.LEASES, {"evil:abc": 1})
        entries, entry = keys.LEASES, "evil:abc"
    else:
        connection.zadd(f"{registry}:{QUEUE}", {"evil": 1})
        entries, entry = f"{registry}:{QUEUE}", "evil"
    abandon(connection, one)
    cancelled.cancel()
    look()
    assert status(connection, first) == "queued"
    assert client.wait(cancelled.id, 60).finish_reason == "cancelled"
    assert connection.zscore(entries, entry) is None


@pytest.mark.parametrize("registry", [*REGISTRIES, "rq:finished", "rq:failed", "rq:wip"])
def test_a_registry_of_another_type_does_not_stop_recovery(
    registry: str, client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None]
) -> None:
    connection.set(f"{registry}:{QUEUE}", "x")
    client.submit(HELLO)
    one = claimed(store)
    abandon(connection, one)
    look(sweep=True)
    assert status(connection, one.job) == "queued"


@pytest.mark.parametrize("key", [keys.bell(QUEUE), keys.CONVERSATIONS, keys.LEASES])
def test_a_key_of_another_type_does_not_stop_a_job(
    key: str, client: Client, connection: redis.Redis, store: JobStore
) -> None:
    connection.set(key, "x")
    jobs = [client.submit(HELLO, conversation="c").job for _ in range(2)]
    for job in jobs:
        one = claimed(store)
        assert one.job == job and store.renew([one]) == (set(), set())
        assert store.finish(job, one.execution, result(job, conversation="c"), turn(job))
    assert [one.job for one in client.history("c")] == jobs and not connection.exists(*map(keys.job, jobs))


@pytest.mark.parametrize("key", [keys.clip(CLIP), keys.conversation("c"), keys.conversation_clips("c"), keys.turns("c"),
                                 "sailq:conversation:c:waiting"])
def test_a_conversation_key_of_another_type_stops_neither_jobs_nor_recovery(
    key: str, client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None]
) -> None:
    submitter = Submitter(connection, Settings())
    submitter.submit(clip_job("one", "c"), {CLIP: PIXELS}, inbox="", keep=True, now=1.0)
    second, other = client.submit(HELLO, conversation="c").job, client.submit(HELLO).job
    connection.delete(key)
    connection.set(key, "x")
    assert status(connection, second) == "deferred"
    one = claimed(store)
    assert one.job == "one"
    assert store.finish("one", one.execution, result("one", conversation="c"), turn("one"))
    assert client.result("one") is not None and not connection.zscore(keys.LEASES, one.lease)
    lost = claimed(store)
    abandon(connection, lost)
    look(sweep=True)
    waiting = {claimed(store).job, claimed(store).job}
    assert waiting == {second, other} and lost.job in waiting


def test_a_clip_key_of_another_type_stops_no_job(client: Client, connection: redis.Redis, store: JobStore) -> None:
    connection.set(keys.clip(CLIP), "x")
    Submitter(connection, Settings()).submit(clip_job("one"), {CLIP: PIXELS}, inbox="", keep=False, now=1.0)
    one = claimed(store)
    assert one.job == "one" and not one.clips  # the worker reports them as expired


# Notifications of an asyncio client

def test_a_deleted_job_is_noticed_while_other_jobs_end(
    redis_url: str, connection: redis.Redis, queue: Queue
) -> None:
    over = threading.Event()

    async def story() -> None:
        async with AsyncClient(redis_url) as client:
            job = (await client.submit(HELLO)).job
            (inbox,) = connection.keys(keys.inbox("*"))

            def others() -> None:
                while not over.wait(0.1):
                    connection.xadd(inbox, {"job": "another"})

            busy = threading.Thread(target=others)
            busy.start()
            try:
                waiting = asyncio.create_task(client.wait(job))
                await asyncio.sleep(0.5)
                queue.fetch_job(job).delete()
                await asyncio.wait_for(waiting, 60)
            finally:
                over.set()
                busy.join()

    with pytest.raises(NotFound):
        asyncio.run(story())


@pytest.mark.parametrize("entry", [{"x": "y"}, {"job": b"\xff"}])
def test_foreign_entries_in_an_inbox_end_no_asyncio_wait(
    entry: dict[str, Any], redis_url: str, connection: redis.Redis, answerer: Answerer
) -> None:
    async def story() -> str:
        async with AsyncClient(redis_url) as client:
            job = (await client.submit(HELLO)).job
            waiting = asyncio.create_task(client.wait(job))
            (inbox,) = connection.keys(keys.inbox("*"))
            await asyncio.sleep(0.3)
            connection.xadd(inbox, entry)
            await asyncio.sleep(0.3)
            answerer.answer(job, "Hi")
            return (await asyncio.wait_for(waiting, 60)).text

    assert asyncio.run(story()) == "Hi"


def test_foreign_entries_in_an_inbox_end_no_wait(
    client: Client, connection: redis.Redis, answerer: Answerer, later: Callable[..., None]
) -> None:
    job = client.submit(HELLO).job

    def write() -> None:
        connection.xadd(keys.inbox(client.inbox.name), {"x": "y"})
        connection.xadd(keys.inbox(client.inbox.name), {"job": b"\xff"})
        answerer.answer(job, "Hi")

    later(write)
    assert client.wait(job, 60).text == "Hi"
