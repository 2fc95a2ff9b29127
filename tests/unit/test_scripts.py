"""After a full server, an outage or a lost reply, no script has stopped half done and no job has lost an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from answering import TTLS, take
from attempts import (
    CLIP,
    HELLO,
    LAST_LOOK,
    LOOKED,
    PIXELS,
    QUEUE,
    abandon,
    claim,
    claimed,
    clip_job,
    everything,
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
from sailq.shared.connection import ServerClock
from sailq.shared.errors import NotFound, ServerUnavailable
from sailq.shared.rqjob import at
from sailq.shared.scripts import script
from sailq.shared.settings import Settings
from sailq.worker.queue.job_store import LEASE_SECONDS, JobStore, new_execution

# Outages

@pytest.mark.parametrize("left", [-3.0, 0.2])
def test_an_outage_costs_live_workers_no_attempt(
    left: float, client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None]
) -> None:
    """`left`: seconds of the leases when the server is back."""
    living, dead = client.submit(HELLO).job, client.submit(HELLO).job
    claims = {one.job: one for one in (claimed(store), claimed(store))}
    look()
    now = ServerClock(connection).now()
    connection.set(LAST_LOOK, now - LEASE_SECONDS + left)
    for one in claims.values():
        connection.zadd(keys.LEASES, {one.lease: now + left}, xx=True)
    look()
    assert [status(connection, job) for job in claims] == ["started", "started"]
    for one in claims.values():  # and live workers have time to renew
        assert connection.zscore(keys.LEASES, one.lease) > now + LEASE_SECONDS / 4
    assert store.renew([claims[living]]) == (set(), set())
    abandon(connection, claims[dead])
    look()
    assert (status(connection, living), status(connection, dead)) == ("started", "queued")
    assert claimed(store).job == dead and connection.hget(keys.job(living), "spent") == b"1"


@pytest.mark.parametrize("lost", [keys.LEASES, f"rq:wip:{QUEUE}"])
def test_an_attempt_whose_lease_key_is_deleted_continues(
    lost: str, client: Client, connection: redis.Redis, store: JobStore
) -> None:
    """As after a deletion by a person, or an eviction by the server."""
    client.submit(HELLO)
    one = claimed(store)
    connection.delete(lost)
    assert store.renew([one]) == (set(), set())
    assert connection.zscore(keys.LEASES, one.lease) and connection.zscore(f"rq:wip:{QUEUE}", one.lease) == float("inf")
    connection.delete(lost, keys.job(one.job))
    assert one.lease in set.union(*store.renew([one]))


def test_a_dead_workers_job_whose_lease_is_deleted_is_recovered(
    client: Client, connection: redis.Redis, store: JobStore
) -> None:
    client.submit(HELLO)
    one = claimed(store)
    connection.delete(keys.LEASES, LOOKED, LAST_LOOK)
    store.recover([QUEUE])
    abandon(connection, one)
    connection.delete(LOOKED)
    assert store.recover([QUEUE]).back == [one.job]


def test_a_dead_workers_job_is_recovered_at_the_second_try(
    client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None], eventually: Callable[..., None]
) -> None:
    client.submit(HELLO)
    one = claimed(store)
    abandon(connection, one)
    connection.set(LAST_LOOK, 1)
    look()
    assert status(connection, one.job) == "started"

    def back() -> bool:
        look()
        return status(connection, one.job) == "queued"

    eventually(back)


# A full server

def test_a_full_server_lets_existing_jobs_end(
    client: Client, connection: redis.Redis, store: JobStore, look: Callable[..., None], full: Callable[[], object]
) -> None:
    jobs = [client.submit(HELLO, conversation="c" if number > 1 else None).job for number in range(4)]
    lost = claimed(store)
    abandon(connection, lost)
    look()
    full()
    first, second, third = claimed(store), claimed(store), claimed(store)
    assert [first.job, second.job, third.job] == jobs[:3] and claim(store) is None
    assert store.begin(first) and store.renew([first, second, third]) == (set(), set())
    assert store.release(second, "handed back", counts=False)
    second = claimed(store)
    connection.config_set("maxmemory", 0)
    for one in (first, second):
        abandon(connection, one)
    full()
    look()
    assert status(connection, first.job) == "failed"  # it was its third attempt
    assert status(connection, second.job) == "queued"
    assert store.finish(third.job, third.execution, result(third.job, conversation="c"), turn(third.job))
    assert status(connection, jobs[3]) == "queued"
    assert client.result(third.job) is not None
    assert client.cancel(jobs[3]) == "cancelled"


def test_a_full_server_refuses_new_jobs_and_stores_no_part_of_them(
    client: Client, connection: redis.Redis, full: Callable[[], object]
) -> None:
    client.submit(HELLO)
    before = everything(connection)
    full()
    submitter = Submitter(connection, Settings())
    with pytest.raises(redis.OutOfMemoryError):
        submitter.submit(clip_job("x", "c"), {CLIP: PIXELS}, inbox=client.inbox.name, keep=True, now=1.0)
    with pytest.raises(redis.OutOfMemoryError):
        submitter.upload({CLIP: PIXELS}, 1.0)
    with pytest.raises(ServerUnavailable):
        client.submit(HELLO)
    assert everything(connection) == before


def test_an_rq_job_gets_its_uploaded_clips_from_a_full_server(
    connection: redis.Redis, queue: Queue, store: JobStore, full: Callable[[], object]
) -> None:
    Submitter(connection, Settings()).upload({CLIP: PIXELS}, 1.0)
    queue.enqueue("sailq.answer", messages=HELLO)
    one = claimed(store)
    full()
    assert store.clips([CLIP], one, 1.0) == {CLIP: PIXELS}


# Clips

def test_a_clip_that_expired_and_came_again_is_counted_once(
    connection: redis.Redis, store: JobStore, look: Callable[..., None]
) -> None:
    submitter = Submitter(connection, Settings())
    for job in ("one", "two"):
        connection.delete(keys.clip(CLIP))
        submitter.submit(clip_job(job), {CLIP: PIXELS}, inbox="", keep=False, now=1.0)
        assert int(connection.get(keys.CLIP_BYTES)) == len(PIXELS)
    for job in ("one", "two"):
        assert store.finish(job, take(store, connection, job).execution, result(job))
    look(sweep=True)
    assert int(connection.get(keys.CLIP_BYTES)) == 0
    assert not connection.exists(keys.CLIPS, keys.clip(CLIP))


# Results that have expired

@pytest.mark.parametrize("whose", ["its own client", "another client", "an asyncio client"])
def test_waiting_for_a_result_that_has_expired_says_so(
    whose: str, redis_url: str, client: Client, connection: redis.Redis, store: JobStore
) -> None:
    job = client.submit(HELLO).job
    assert store.finish(job, claimed(store).execution, result(job, "internal"))
    connection.delete(keys.result(job))
    assert status(connection, job) == "failed"
    with pytest.raises(NotFound):
        client.result(job)
    if whose == "an asyncio client":
        async def wait() -> None:
            async with AsyncClient(redis_url) as asked:
                with pytest.raises(NotFound):
                    await asked.result(job)
                await asked.wait(job, 60)

        with pytest.raises(NotFound):
            asyncio.run(wait())
        return
    client.inbox.result_ttl = 30  # as with a very short SAILQ_RESULT_TTL
    with Client(redis_url) as another, pytest.raises(NotFound):
        (client if whose == "its own client" else another).wait(job, 60)


# Sizes

def test_a_clip_named_many_times_is_sent_once(connection: redis.Redis, queue: Queue, store: JobStore) -> None:
    data = bytes(500_000)
    connection.hset(keys.clip(CLIP), "data", data)
    job = queue.enqueue("sailq.answer", messages=HELLO).id
    connection.hset(keys.job(job), "clips", " ".join([CLIP] * 200))
    sent = connection.info("stats")["total_net_output_bytes"]
    assert claimed(store).clips == {CLIP: data}
    assert connection.info("stats")["total_net_output_bytes"] - sent < 2 * len(data)


def test_a_claim_returns_a_limited_amount_of_clips(connection: redis.Redis, queue: Queue, store: JobStore) -> None:
    digests = [f"{number:064x}" for number in range(80)]
    for digest in digests:
        connection.hset(keys.clip(digest), "data", bytes(1_000_000))
    job = queue.enqueue("sailq.answer", messages=HELLO).id
    connection.hset(keys.job(job), "clips", " ".join(digests))
    one = claimed(store)
    assert 16 <= len(one.clips) < 40
    missing = [digest for digest in digests if digest not in one.clips]
    assert len(store.clips(missing, one, 1.0)) == len(missing)


def test_an_end_notifies_a_limited_number_of_inboxes(
    client: Client, connection: redis.Redis, store: JobStore
) -> None:
    job = client.submit(HELLO).job
    connection.hset(keys.job(job), "inbox", " ".join([client.inbox.name, *(f"{n:016x}" for n in range(30_000))]))
    one = claimed(store)
    before = connection.info("commandstats")["cmdstat_xadd"]["calls"]
    assert store.finish(job, one.execution, result(job))
    assert 1 <= connection.info("commandstats")["cmdstat_xadd"]["calls"] - before <= 65
    assert client.wait(job, 60).job == job


# Conversations

def test_a_conversation_in_use_does_not_end_by_its_ttl(
    redis_url: str, connection: redis.Redis, look: Callable[..., None]
) -> None:
    short = Settings(redis_url=redis_url, conversation_ttl=1)
    worker = JobStore(connection, connection, short, "test")
    with closing(Client(settings=short)) as client:
        first = client.submit(HELLO, conversation="c")
        one = claimed(worker)
        second = client.submit(HELLO, conversation="c")
        for key in (keys.conversation("c"), "sailq:conversation:c:waiting"):  # as long as one of its jobs may wait
            assert connection.ttl(key) > short.job_ttl - 60
        look()
        assert (first.turn, second.turn, status(connection, second.job)) == (0, 1, "deferred")
        assert worker.finish(first.job, one.execution, result(first.job, conversation="c"), turn(first.job))
        assert status(connection, second.job) == "queued"
        # The earlier turns exist for as long as the next turn waits.
        assert connection.ttl(keys.turns("c")) > short.job_ttl - 60
        two = claimed(worker)
        assert two.job == second.job and len(two.turns) == 1
        third = client.submit(HELLO, conversation="c")
        assert third.turn == 2 and status(connection, third.job) == "deferred"


def test_no_turn_overtakes_one_that_waits(
    client: Client, connection: redis.Redis, queue: Queue, store: JobStore, look: Callable[..., None]
) -> None:
    head, second = (client.submit(HELLO, conversation="c").job for _ in range(2))
    queue.fetch_job(head).delete()
    third = client.submit(HELLO, conversation="c").job
    assert [status(connection, job) for job in (second, third)] == ["deferred", "deferred"]
    for job in (second, third):
        look()
        one = claimed(store)
        assert one.job == job and claim(store) is None
        look()
        assert claim(store) is None
        assert store.finish(job, one.execution, result(job, conversation="c"), turn(job))


def test_turns_run_in_order_after_one_that_a_tool_has_cancelled(
    client: Client, connection: redis.Redis, queue: Queue, store: JobStore, look: Callable[..., None]
) -> None:
    first, second, third = (client.submit(HELLO, conversation="c").job for _ in range(3))
    one = claimed(store)
    queue.fetch_job(second).cancel()
    look()
    assert (one.job, status(connection, third), claim(store)) == (first, "deferred", None)
    assert store.finish(first, one.execution, result(first, conversation="c"), turn(first))
    assert claimed(store).job == third


# The bell

def test_a_woken_worker_that_leaves_jobs_wakes_another(
    client: Client, connection: redis.Redis, store: JobStore
) -> None:
    for _ in range(12):
        client.submit(HELLO)
    bell = keys.bell(QUEUE)
    assert connection.llen(bell) == 8  # however many wait
    while connection.lpop(bell):  # eight workers wake up
        pass
    assert store.claim([QUEUE], new_execution(), 1.0, idle=False)  # a busy worker took no token, and pushes none
    assert connection.llen(bell) == 0
    assert store.claim([QUEUE], new_execution(), 1.0, idle=True)
    assert connection.llen(bell) == 1
    for _ in range(9):
        assert store.claim([QUEUE], new_execution(), 1.0, idle=False)
    last = store.claim([QUEUE], new_execution(), 1.0, idle=True)
    assert last and not last.more and connection.llen(bell) == 1


# RQ's own records

def test_a_job_cancelled_by_a_tool_whose_worker_died_leaves_no_execution(
    connection: redis.Redis, queue: Queue, store: JobStore, look: Callable[..., None]
) -> None:
    job = queue.enqueue("sailq.answer", messages=HELLO)
    one = claimed(store)
    job.cancel()
    abandon(connection, one)
    look()
    look(sweep=True)
    assert connection.keys("rq:execution*") == [] and connection.zcard(f"rq:wip:{QUEUE}") == 0
    assert status(connection, job.id) == "canceled" and connection.exists(keys.result(job.id))


# Calls sent again after a lost reply

class Twice(redis.Redis):
    """A connection that sends each script twice, as redis-py does where the reply to the first one is lost."""

    replies: list[tuple[Any, Any]]

    def evalsha(self, *arguments: Any) -> Any:
        first = super().evalsha(*arguments)
        before = everything(self)
        self.replies.append((first, super().evalsha(*arguments)))
        assert everything(self) == before
        return self.replies[-1][1]


@pytest.fixture
def twice(redis_url: str, connection: redis.Redis) -> Iterator[Twice]:
    with Twice.from_url(redis_url) as twice:
        twice.replies = []
        for name in ("submit", "finish", "cancel", "retry", "drop", "hold"):
            twice.script_load(script(connection, name).script)
        yield twice
        assert twice.replies


def test_a_submission_sent_again_changes_nothing(client: Client, twice: Twice, connection: redis.Redis) -> None:
    client.submit(HELLO, conversation="c")
    made = Submitter(twice, Settings()).submit(
        clip_job("x", "c"), {CLIP: PIXELS}, inbox=client.inbox.name, keep=True, now=1.0
    )
    assert made.turn == 1 and twice.replies == [([b"queued", 1], [b"known", 1])]
    assert int(connection.get(keys.CLIP_BYTES)) == len(PIXELS)


@pytest.mark.parametrize("code", ["", "internal"])
@pytest.mark.parametrize("by", ["sailq", "rq"])
def test_an_end_sent_again_changes_nothing(
    by: str, code: str, client: Client, twice: Twice, connection: redis.Redis, queue: Queue
) -> None:
    if by == "sailq":
        client.submit(HELLO, conversation="c")
        waits = client.submit(HELLO, conversation="c").job
    else:
        first = queue.enqueue("sailq.answer", messages=HELLO)
        waits = queue.enqueue("sailq.answer", messages=HELLO, depends_on=first).id
    one = claimed(JobStore(connection, connection, TTLS, "test"))
    conversation = "c" if by == "sailq" else one.job
    connection.xgroup_create(keys.RESULTS, "reader", mkstream=True)
    store = JobStore(twice, connection, TTLS, "test")
    ended = result(one.job, code, conversation)
    assert store.finish(one.job, one.execution, ended, None if code else turn(one.job))
    assert twice.replies == [(1, 1)]
    assert connection.xlen(keys.RESULTS) == 1 and connection.llen(keys.turns(conversation)) == (0 if code else 1)
    assert status(connection, waits) == ("deferred" if by == "rq" and code else "queued")


def test_a_cancellation_sent_again_says_the_same(client: Client, twice: Twice, store: JobStore) -> None:
    waits, runs = client.submit(HELLO).job, client.submit(HELLO).job
    take(store, client.connection, runs)
    submitter = Submitter(twice, Settings())
    assert [submitter.cancel(result(job, "cancelled")) for job in (waits, runs)] == ["cancelled", "running"]
    assert twice.replies == [(b"cancelled", b"cancelled"), (b"running", b"running")]
    assert client.cancel(waits) == "finished"  # another one, later


def retry(connection: redis.Redis, job: str, now: float) -> bytes:
    reply: bytes = script(connection, "retry")(keys=[keys.job(job)], args=[job, now, at(now), 60, 60])
    return reply


def test_a_retry_sent_again_says_the_same(client: Client, twice: Twice, store: JobStore) -> None:
    job = client.submit(HELLO).job
    assert store.finish(job, claimed(store).execution, result(job, "internal"))
    assert retry(twice, job, 2.0) == b"retried"
    assert twice.replies == [(b"retried", b"retried")]
    assert client.connection.lrange(keys.waiting(QUEUE), 0, -1) == [job.encode()]
    assert retry(client.connection, job, 3.0) == b"gone"  # another one, later
    assert store.finish(job, claimed(store).execution, result(job, "internal"))
    assert client.connection.hget(keys.job(job), "created_at") == at(2.0).encode()
    assert retry(client.connection, job, 4.0) == b"retried"
    assert status(client.connection, job) == "queued"


def test_a_drop_sent_again_says_the_same(client: Client, twice: Twice, store: JobStore) -> None:
    job = client.submit(HELLO).job
    assert store.finish(job, claimed(store).execution, result(job, "internal"))
    Failures(twice, Settings()).drop(job)
    assert twice.replies == [(1, 1)] and not client.connection.exists(keys.job(job))
    with pytest.raises(NotFound):  # another one, later
        Failures(client.connection, Settings()).drop(job)


def test_an_upload_sent_again_is_held_once(client: Client, twice: Twice) -> None:
    Submitter(twice, Settings(max_blob_bytes=len(PIXELS))).upload({CLIP: PIXELS}, 1.0)
    assert twice.replies == [([b"held", 1], [b"held", 1])]
    assert int(client.connection.get(keys.CLIP_BYTES)) == len(PIXELS) and client.connection.hlen(keys.clip(CLIP)) == 2
