"""The server keeps a clip as long as a job, a conversation or an upload holds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import redis
from answering import TTLS, Answerer, take

from sailq.operators.failures import Failures
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.errors import BadMedia
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import Failure, FramesPart, Message, Result
from sailq.shared.media.messages import Prepared
from sailq.worker.queue.job_store import JobStore

QUEUE = keys.queue("sailq-tiny")


def clip(seed: int) -> Prepared:
    digest, data = encode_frames(np.random.default_rng(seed).integers(0, 256, (1, 56, 56, 3), np.uint8))
    part = FramesPart(type="image", blob=digest, frames=1, height=56, width=56)
    return Prepared((Message(role="user", content=(part,)),), {digest: data}, 4)


def digest(prepared: Prepared) -> str:
    return next(iter(prepared.blobs))


@pytest.fixture
def held(connection: redis.Redis) -> Callable[[], int]:
    """Bytes of clips on the server, by its keys; what is counted must say the same."""

    def held() -> int:
        sizes = {key: len(connection.hget(key, "data")) for key in connection.scan_iter(keys.clip("*"))}
        counted = {member.decode().split(":")[0] for member in connection.zrange(keys.CLIPS, 0, -1)}
        assert counted == {key.decode().rpartition(":")[2] for key in sizes}
        assert int(connection.get(keys.CLIP_BYTES) or 0) == sum(sizes.values())
        return sum(sizes.values())

    return held


@pytest.fixture
def store(connection: redis.Redis) -> JobStore:
    return JobStore(connection, connection, TTLS, "test")


def fail(store: JobStore, connection: redis.Redis, job: str) -> None:
    claim = take(store, connection, job)
    assert store.finish(job, claim.execution, Result(
        job=job, conversation=job, turn=0, finish_reason="error", finished_at=store_now(connection),
        error=Failure(code="internal", message="It broke."),
    ))


def store_now(connection: redis.Redis) -> float:
    return float(connection.time()[0])


def test_a_clip_is_freed_with_the_last_job_that_needs_it(
    client: Client, answerer: Answerer, held: Callable[[], int]
) -> None:
    one = clip(1)
    jobs = [client.submit_prepared(one).job for _ in range(3)]
    size = held()
    assert size == len(one.blobs[digest(one)])
    answerer.answer(jobs[0], "yes")
    assert client.cancel(jobs[1]) == "cancelled"
    assert held() == size
    answerer.answer(jobs[2], "yes")
    assert held() == 0


def test_a_failed_jobs_clip_stays_until_it_is_dropped_or_answered(
    client: Client, connection: redis.Redis, store: JobStore, answerer: Answerer, held: Callable[[], int]
) -> None:
    failures = Failures(connection, TTLS)
    dropped, retried = (client.submit_prepared(clip(seed)).job for seed in (1, 2))
    for job in (dropped, retried):
        fail(store, connection, job)
    both = held()
    failures.drop(dropped)
    assert 0 < held() < both
    failures.retry(retried)
    assert 0 < held() < both
    answerer.answer(retried, "yes")
    assert held() == 0


def test_a_conversation_keeps_its_clips_until_it_is_cleared(
    client: Client, connection: redis.Redis, store: JobStore, answerer: Answerer, held: Callable[[], int]
) -> None:
    first, second = clip(1), clip(2)
    answerer.answer(client.submit_prepared(first, conversation="c").job, "one")
    answerer.answer(client.submit_prepared(second, conversation="c").job, "two")
    claim = take(store, connection, client.submit_prepared(clip(3), conversation="c", keep=False).job)
    assert len(claim.turns) == 2 and len(claim.clips) == 1
    before = held()
    assert len(store.clips([digest(first), digest(second)], claim, 1.0)) == 2
    assert store.finish(claim.job, claim.execution, Result(
        job=claim.job, conversation="c", turn=2, finish_reason="stop", finished_at=store_now(connection)
    ))
    assert 0 < held() < before
    client.clear("c")
    assert held() == 0


def test_a_single_turn_keeps_no_clip_unless_asked_to(
    client: Client, answerer: Answerer, held: Callable[[], int]
) -> None:
    answerer.answer(client.submit_prepared(clip(1)).job, "yes")
    assert held() == 0
    kept = client.submit_prepared(clip(1), keep=True)
    answerer.answer(kept.job, "yes")
    assert held() > 0
    client.clear(kept.conversation)
    assert held() == 0


def test_clips_that_expired_cannot_be_retried(
    client: Client, connection: redis.Redis, store: JobStore, held: Callable[[], int]
) -> None:
    one = clip(1)
    job = client.submit_prepared(one).job
    fail(store, connection, job)
    connection.delete(keys.clip(digest(one)))
    with pytest.raises(BadMedia):
        Failures(connection, TTLS).retry(job)


@pytest.mark.parametrize("lost", ["job", "clip", "conversation"])
def test_the_sweep_frees_abandoned_clips(
    lost: str, client: Client, connection: redis.Redis, store: JobStore, answerer: Answerer, held: Callable[[], int]
) -> None:
    """States of a clip's holders that only a tool of RQ's, an expiry or a lost server can cause."""
    one, other = clip(1), clip(2)
    job = client.submit_prepared(one, conversation="c").job
    stays = client.submit_prepared(other).job
    if lost == "job":
        connection.delete(keys.job(job))
    elif lost == "clip":
        connection.delete(keys.clip(digest(one)))
    else:
        answerer.answer(job, "yes")
        connection.delete(keys.turns("c"))
    for member in connection.zrange(keys.CLIPS, 0, -1):  # makes the last check of each clip old
        connection.zadd(keys.CLIPS, {member: 1})
    store.recover([QUEUE])
    assert held() == len(other.blobs[digest(other)])
    answerer.answer(stays, "yes")
    assert held() == 0


def test_ended_jobs_are_added_to_a_stream_once_a_reader_has_created_it(
    client: Client, connection: redis.Redis, answerer: Answerer
) -> None:
    answerer.answer(client.submit_prepared(clip(1)).job, "yes")
    assert not connection.exists(keys.RESULTS)
    store = JobStore(connection, connection, TTLS, "test")
    connection.xgroup_create(keys.RESULTS, "archive", mkstream=True)
    job = client.submit_prepared(clip(1)).job
    claim = take(store, connection, job)
    result = Result(job=job, conversation=job, turn=0, text="yes", finish_reason="stop", finished_at=1.0)
    assert store.finish(job, claim.execution, result)
    ((_, ((_, fields),)),) = connection.xreadgroup("archive", "me", {keys.RESULTS: ">"})
    assert fields[b"job"] == job.encode() and client.result(job) == result
