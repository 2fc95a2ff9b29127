"""Jobs that fail for reasons outside the job: their attempts, their end, and `sailq failed`."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from answering import TTLS, Answerer, take
from commands import invoke, refused
from farm import Farm, NullWorker
from rq.job import Job as RQJob

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import DIED, HANDED_BACK, Failure, FramesPart, GenerationOptions, Message, Result, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.rqjob import MAX_ATTEMPTS, Serializer, read_job
from sailq.worker.queue.job_store import Claim, JobStore, Recovered, new_execution

FAILING_PROMPT, DEADLY_PROMPT = 200, 600
"""Tokens from which on a prefill fails, and from which on it takes the process down."""
QUEUE = keys.queue("sailq-tiny")
MAX_HISTORY = 8
Eventually = Callable[..., None]


def said(text: str) -> Prepared:
    return Prepared((Message(role="user", content=(TextPart(text=text),)),), {}, 0)


def submit(client: Client, text: str = "Hi", tokens: int = 5, **options: Any) -> str:
    return client.submit_prepared(said(text), options=GenerationOptions(max_new_tokens=tokens), **options).job


@contextmanager
def supervised(farm: Farm, url: str, folder: Path) -> Iterator[list[NullWorker]]:
    """A worker on which long prompts fail or kill it, and which is started again each time: gives those that died."""
    ended: list[NullWorker] = []
    stop = threading.Event()

    def supervise() -> None:
        for count in itertools.count():
            worker = farm.start(url, folder / f"worker-{count}.log", "--decode-ms", "20",
                                "--failing-prompt", str(FAILING_PROMPT), "--deadly-prompt", str(DEADLY_PROMPT))
            while worker.alive:
                if stop.wait(0.05):
                    worker.close()
                    return
            worker.close()
            ended.append(worker)

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        yield ended
    finally:
        stop.set()
        supervisor.join()


def listed(url: str, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(invoke("failed", "list", "--json", *arguments, url=url).stdout)
    return found


def rq_cause(connection: redis.Redis, job: str) -> str:
    """The reason that RQ shows for a failed job."""
    failed = RQJob.fetch(job, connection=connection, serializer=Serializer)
    assert failed.get_status() == "failed" and failed in failed.failed_job_registry
    return str(failed.latest_result().exc_string)


@pytest.mark.proof  # three leases must end
def test_a_job_that_kills_its_worker_each_time_ends_as_an_error_and_harms_no_other(
    redis_url: str, client: Client, connection: redis.Redis, farm: Farm, tmp_path: Path, eventually: Eventually
) -> None:
    beside = [submit(client, tokens=60) for _ in range(4)]
    poison = submit(client, "video " * DEADLY_PROMPT, conversation="mine", metadata={"camera": 3})
    beside += [submit(client, tokens=60) for _ in range(3)]
    began = connection.time()[0]
    with supervised(farm, redis_url, tmp_path) as ended:
        result = client.wait(poison, 200)
        others = [client.wait(job, 60) for job in beside]
        assert len(ended) == MAX_ATTEMPTS
        eventually(lambda: connection.zcard(keys.failed(QUEUE)) == 1)

    assert all(other.error is None and other.usage.completion_tokens == 60 for other in others)
    assert max(other.attempt for other in others) > 1  # some jobs ran beside it
    assert result.error and result.error.code == "internal" and str(MAX_ATTEMPTS) in result.error.message
    assert (result.conversation, result.metadata, result.attempt) == ("mine", {"camera": 3}, MAX_ATTEMPTS)
    assert [(one.attempt, one.cause) for one in result.history] == [(n + 1, DIED) for n in range(MAX_ATTEMPTS)]
    assert len({one.worker for one in result.history}) == MAX_ATTEMPTS
    starts = [one.started_at for one in result.history]
    assert starts == sorted(starts) and began <= starts[0] and starts[-1] < result.finished_at

    assert rq_cause(connection, poison) == result.error.message
    (row,) = listed(redis_url)
    assert (row["job"], row["conversation"], row["model"]) == (poison, "mine", "sailq-tiny")
    assert row["history"] == [one.model_dump() for one in result.history]


def test_an_internal_error_is_kept_for_a_retry_and_a_jobs_own_error_is_not(
    redis_url: str, client: Client, connection: redis.Redis, farm: Farm, tmp_path: Path, eventually: Eventually
) -> None:
    failing = submit(client, "video " * FAILING_PROMPT, conversation="c")
    too_long = submit(client, "word " * 30_000)
    after = submit(client, conversation="c")
    with supervised(farm, redis_url, tmp_path) as ended:
        result = client.wait(failing, 120)
        assert client.wait(too_long, 60).error and client.wait(after, 60).error is None
        eventually(lambda: connection.zcard(keys.failed(QUEUE)) == 1)
        assert [row["job"] for row in listed(redis_url)] == [failing]
        (attempt,) = result.history
        assert attempt.attempt == 1 and attempt.cause.startswith("error: ") and "out of memory" in attempt.cause

        # A retried job fails in the same way as a new job, but its attempt has a new number.
        assert invoke("failed", "retry", failing, url=redis_url).stdout.split()[0] == "1"
        again = client.wait(failing, 60)
        assert [one.attempt for one in again.history] == [2] and again.turn == 0
        eventually(lambda: connection.zcard(keys.failed(QUEUE)) == 1)
        assert not ended
    assert "out of memory" in rq_cause(connection, failing)

    assert invoke("failed", "drop", failing, url=redis_url).returncode == 0
    assert listed(redis_url) == [] and not connection.exists(keys.job(failing), f"rq:results:{failing}")
    assert connection.zcard(keys.failed(QUEUE)) == 0
    assert client.result(failing) == again  # the producer may still need it


@pytest.fixture
def store(connection: redis.Redis) -> JobStore:
    return JobStore(connection, connection, TTLS, "test")


@pytest.fixture
def fail(connection: redis.Redis, store: JobStore) -> Callable[[str], None]:
    """Plays a worker that fails on a job."""

    def fail(job: str, code: str = "internal") -> None:
        claim = take(store, connection, job)
        result = Result(job=job, conversation="c", turn=0, finish_reason="error", model="sailq-tiny", finished_at=2e9,
                        error=Failure(code=code, message="It [broke]."), history=store.history(job))
        assert store.finish(job, claim.execution, result)

    return fail


def test_a_retried_job_is_answered_as_a_new_one(
    redis_url: str, client: Client, connection: redis.Redis, fail: Callable[[str], None], answerer: Answerer
) -> None:
    job = submit(client, stream=True)
    fail(job)
    assert client.result(job)
    page = invoke("failed", "list", url=redis_url).stdout
    assert "It [broke]." in page and job in page
    before = connection.llen(f"rq:queue:{QUEUE}")
    said = json.loads(invoke("failed", "retry", job, "--json", url=redis_url).stdout)
    assert said == {"retried": [job], "refused": []}
    assert connection.llen(f"rq:queue:{QUEUE}") == before + 1
    assert client.result(job) is None and listed(redis_url) == []
    answerer.answer(job, "yes")
    answer = client.wait(job, 5)
    assert answer.text == "yes" and [turn.text for turn in client.history(answer.conversation)] == ["yes"]
    assert list(client.stream(job, 5)) == []


def test_a_retried_job_that_waits_is_cancelled_at_once(
    redis_url: str, client: Client, fail: Callable[[str], None]
) -> None:
    job = submit(client)
    fail(job)
    assert invoke("failed", "retry", "--all", url=redis_url).returncode == 0
    assert client.cancel(job) == "cancelled"


def test_jobs_that_cannot_be_retried_are_named_and_stop_no_other(
    redis_url: str, client: Client, connection: redis.Redis, fail: Callable[[str], None], eventually: Eventually
) -> None:
    digest, blob = encode_frames(np.zeros((2, 56, 56, 3), np.uint8))
    part = FramesPart(type="video", blob=digest, frames=2, height=56, width=56)
    seen = client.submit_prepared(Prepared((Message(role="user", content=(part,)),), {digest: blob}, 0)).job
    late = submit(client, timeout=0.5)
    deadline = read_job(late, QUEUE, connection.hgetall(keys.job(late))).deadline or 0
    good = submit(client)
    for job in (seen, late, good):
        fail(job)
    connection.delete(keys.clip(digest))
    eventually(lambda: connection.time()[0] > deadline)
    done = invoke("failed", "retry", seen, late, "nosuchjob", good, url=redis_url)
    assert (done.returncode, done.stdout.split()[0]) == (1, "1")
    for word, line in zip(("frames", "deadline", "nosuchjob"), done.stderr.splitlines(), strict=True):
        assert word in line
    assert {row["job"] for row in listed(redis_url)} == {seen, late}  # unchanged
    assert listed(redis_url, "--model", "another") == []
    assert invoke("failed", "drop", "--all", "--model", "another", url=redis_url).stdout.split()[0] == "0"
    refused = invoke("failed", "retry", "--all", "--json", url=redis_url)
    assert refused.returncode == 1
    assert {one["error"]["code"] for one in json.loads(refused.stdout)["refused"]} == {"bad_media", "deadline"}
    assert invoke("failed", "drop", "--all", url=redis_url).stdout.split()[0] == "2"
    assert listed(redis_url) == [] and len(invoke("failed", "list", url=redis_url).stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("retry",), ("drop",), ("retry", "x", "--all"), ("drop", "x", "--model", "y")])
def test_jobs_to_retry_or_drop_must_be_named(arguments: tuple[str, ...], redis_url: str) -> None:
    refused(invoke("failed", *arguments, url=redis_url), "bad_request", "--all")


def test_the_last_attempt_counts_once_it_has_begun_and_one_that_was_handed_back_does_not(
    client: Client, connection: redis.Redis, store: JobStore
) -> None:
    job = submit(client)

    def claimed() -> Claim:
        claim = store.claim([QUEUE], new_execution(), 1.0)
        assert claim is not None and claim.job == job
        return claim

    def recovered(claim: Claim) -> Recovered:
        """The result of another worker's recovery after this attempt's worker died."""
        connection.zadd(keys.LEASES, {claim.lease: 1})
        connection.delete("sailq:looked")
        return store.recover([QUEUE])

    for attempt in range(1, MAX_HISTORY + 3):
        claim = claimed()
        assert claim.attempt == attempt and not claim.last
        assert store.release(claim, HANDED_BACK, counts=False)
        assert not store.release(claim, "error: twice", counts=False)
    for _ in range(MAX_ATTEMPTS - 1):
        claim = claimed()
        assert not claim.last and recovered(claim).back == [job]
    waits_to_be_alone = claimed()
    assert waits_to_be_alone.last and recovered(waits_to_be_alone).back == [job]
    last = claimed()
    assert last.last and store.begin(last) and not store.begin(waits_to_be_alone)
    assert recovered(last).given_up == [(job, last.execution)] and connection.llen(keys.waiting(QUEUE)) == 0
    causes = [one.cause for one in store.history(job)]
    assert causes == [HANDED_BACK] * (MAX_HISTORY - MAX_ATTEMPTS - 1) + [DIED] * (MAX_ATTEMPTS + 1)


@pytest.mark.parametrize("garbage", [b"\xff", b"7", b'[{"attempt": "x"}]', b"[[]]", b'{"a": 1}', b"[7]", b"null"])
def test_a_history_that_sailq_did_not_write_is_ignored(
    garbage: bytes, client: Client, connection: redis.Redis, store: JobStore
) -> None:
    job = submit(client)
    connection.hset(keys.job(job), "history", garbage)
    assert store.history(job) == ()
    claim = take(store, connection, job)
    connection.hset(keys.job(job), "history", garbage)
    assert store.release(claim, "error: it broke")
    assert [*connection.lrange(keys.waiting(QUEUE), 0, -1)] == [job.encode()]
