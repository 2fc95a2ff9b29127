"""A job's way through a real server and real workers: in order, once, cancelled, late, refused, re-run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import redis
from answering import Answerer
from asking import ANSWER_OF_960
from farm import NullWorker
from rq.job import Job as RQJob

from sailq.producer.client import Client, JobHandle
from sailq.producer.managed_process import ManagedProcess
from sailq.shared import keys
from sailq.shared.errors import NotFound
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.rqjob import MAX_ATTEMPTS
from sailq.shared.settings import Settings

QUEUE = keys.queue("sailq-tiny")
SHORT = GenerationOptions(max_new_tokens=2)
TALK = "Tell me."
CLOCK_SECONDS = 0.5
"""A worker learns the server's clock from one reply, and a busy machine may delay that."""
Start = Callable[..., ManagedProcess]
Eventually = Callable[..., None]


def said(text: str) -> Prepared:
    return Prepared((Message(role="user", content=(TextPart(text=text),)),), {}, 0)


@pytest.fixture
def served(served_url: str) -> Iterator[Client]:
    """A client of the worker that all tests share."""
    with Client(served_url) as client:
        yield client


def shown(frames: int = 4, seed: int = 0, text: str = "Describe the video.", size: int = 84) -> Prepared:
    clip = np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), np.uint8)
    digest, blob = encode_frames(clip)
    part = FramesPart(type="video", blob=digest, frames=frames, height=size, width=size)
    return Prepared((Message(role="user", content=(part, TextPart(text=text))),), {digest: blob}, 0)


def produce(url: str, producer: int, conversations: int, turns: int) -> None:
    """One producer process: `turns` turns to each of its conversations, and one to each that all share."""
    with Client(url) as client:
        for turn in range(turns):
            for number in range(conversations):
                client.submit_prepared(said(f"turn {turn}"), conversation=f"p{producer}-{number}", options=SHORT)
        for number in range(10):
            client.submit_prepared(said("shared"), conversation=f"shared-{number}", options=SHORT)


@pytest.mark.proof
def test_1000_jobs_from_4_producers_finish_once_and_in_order(
    redis_url: str, client: Client, start_worker: Start, eventually: Eventually
) -> None:
    workers = [start_worker("--slots", "4"), start_worker("--slots", "4")]
    spawn = multiprocessing.get_context("spawn")
    producers = [spawn.Process(target=produce, args=(redis_url, n, 30, 8)) for n in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
        assert producer.exitcode == 0
    eventually(lambda: len(client.connection.keys(keys.result("*"))) == 1000, 240)

    conversations = client.conversations()
    assert len(conversations) == 4 * 30 + 10
    answered = 0
    makers: set[str] = set()
    for conversation in conversations:
        turns = client.history(conversation)
        answered += len(turns)
        results = [client.result(turn.job) for turn in turns]
        assert [turn.turn for turn in turns] == list(range(8 if conversation[0] == "p" else 4))
        finished = [result.finished_at for result in results if result]
        assert finished == sorted(finished)
        # Each turn's prompt contained all earlier turns.
        prompts = [result.usage.prompt_tokens for result in results if result]
        assert prompts == sorted(set(prompts))
        for result in results:
            assert result and result.attempt == 1 and result.error is None
            makers.add(result.worker)
    assert answered == 1000

    eventually(lambda: client.connection.zcard(f"rq:wip:{QUEUE}") == client.connection.zcard(keys.LEASES) == 0)
    assert not client.connection.keys("rq:job:*") and not client.connection.keys("rq:execution*")
    assert len(makers) == 2
    for worker in workers:
        worker.check()
    loads = [client.connection.hget(keys.worker(name.decode()), "model_loads")
             for name in client.connection.zrange(keys.WORKERS, 0, -1)]
    print(f"\nfigure: 1000 jobs, 4 producers, 2 workers: {answered} answered in order, each at its first attempt, "
          f"{[int(count) for count in loads]} model loads")
    assert loads == [b"1", b"1"]


def test_a_jobs_rq_hash_is_small_whatever_its_media(client: Client, connection: redis.Redis) -> None:
    handle = client.submit_prepared(shown(frames=64, size=420), metadata={"x": "y" * 5000})
    job = connection.hgetall(RQJob.key_for(handle.job))
    size = sum(len(name) + len(value) for name, value in job.items())
    memory = connection.memory_usage(RQJob.key_for(handle.job))
    print(f"\nfigure: a job's RQ hash: {size} bytes, {memory} in the server's memory")
    assert size <= 8 * 1024 and memory <= 8 * 1024


@pytest.mark.proof
@pytest.mark.alone
def test_memory_returns_when_results_expire(
    redis_url: str,
    connection: redis.Redis,
    start_worker: Start,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    for name, seconds in {"RESULT_TTL": 3, "JOB_TTL": 60, "CONVERSATION_TTL": 3}.items():
        monkeypatch.setenv(f"SAILQ_{name}", str(seconds))  # for the worker
    start_worker()
    ours = (keys.job("*"), keys.result("*"), keys.stream("*"), keys.clip("*"), keys.conversation("*"))

    def held() -> int:
        return sum(len(connection.keys(pattern)) for pattern in ours) + connection.zcard(f"rq:finished:{QUEUE}")

    def work(count: int, frames: int) -> None:
        with Client(settings=Settings(redis_url=redis_url)) as client:
            handles = [client.submit_prepared(shown(frames, seed), options=SHORT) for seed in range(count)]
            for handle in handles:
                assert client.wait(handle.job, 60).error is None
        assert held() > 0
        eventually(lambda: held() == 0)

    work(5, 4)  # scripts loaded, pools filled
    start = connection.info("memory")["used_memory"]
    work(60, 16)
    eventually(lambda: connection.info("memory")["used_memory"] <= 1.05 * start)
    end = connection.info("memory")["used_memory"]
    print(f"\nfigure: server memory after all has expired: {end / start:.3f} of its start")


def test_a_stream_gives_the_text_that_the_result_has(served: Client) -> None:
    handle = served.submit_prepared(said(TALK), options=ANSWER_OF_960, stream=True)
    chunks = list(served.stream(handle.job, 60))
    result = served.wait(handle.job, 60)
    assert len(chunks) > 3 and not any(chunk.restarted for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert list(served.stream(handle.job, 60)) and served.result(handle.job) == result  # the same again


def test_timings_add_up(served: Client) -> None:
    began = time.monotonic()
    handle = served.submit_prepared(shown(text=TALK), options=ANSWER_OF_960, metadata={"camera": 3})
    result = served.wait(handle.job, 60)
    elapsed = time.monotonic() - began
    timings = result.timings
    spans = (timings.queue_wait, timings.fetch, timings.preprocess, timings.vision_encode, timings.prefill)
    assert all(span is not None and span >= 0 for span in spans)
    assert timings.end_to_end and timings.decode and timings.vision_encode
    assert timings.time_to_first_token is not None  # 0 if the worker's estimate of the server's clock is early
    assert sum(span or 0 for span in spans) <= timings.time_to_first_token + CLOCK_SECONDS
    assert timings.time_to_first_token + timings.decode <= timings.end_to_end + CLOCK_SECONDS
    assert timings.end_to_end <= elapsed + CLOCK_SECONDS
    assert result.usage.completion_tokens > 10 and result.usage.vision_tokens == 18
    assert result.tokens_per_second == pytest.approx((result.usage.completion_tokens - 1) / timings.decode)
    assert (result.metadata, result.model, result.attempt) == ({"camera": 3}, "sailq-tiny", 1)


@pytest.mark.proof
def test_the_same_seed_gives_the_same_text_and_zero_temperature_is_greedy(client: Client, start_worker: Start) -> None:
    start_worker("--slots", "4")

    def texts(**options: object) -> list[str]:
        handles = [client.submit_prepared(shown(seed=1), options=options) for _ in range(4)]
        return [client.wait(handle.job, 60).text for handle in handles]

    sampled = texts(temperature=2.0, top_p=0.95, seed=11, max_new_tokens=30)
    assert len(set(sampled)) == 1
    assert len(set(texts(temperature=2.0, max_new_tokens=30))) > 1
    assert set(texts(temperature=1e-4, seed=3)) == set(texts(temperature=0.0))


def test_cancel_of_a_waiting_job_is_at_once(client: Client) -> None:
    handle = client.submit_prepared(said("hi"), metadata={"k": 1})
    assert client.cancel(handle.job) == "cancelled"
    result = client.result(handle.job)
    assert result and (result.finish_reason, result.metadata) == ("cancelled", {"k": 1})
    assert client.cancel(handle.job) == "finished"
    with pytest.raises(NotFound):
        client.cancel("nosuchjob")


def test_cancel_of_a_running_job_ends_it_and_the_next_is_served(served: Client) -> None:
    handle = served.submit_prepared(said(TALK), options=ANSWER_OF_960, stream=True)
    next(served.stream(handle.job, 60))
    assert served.cancel(handle.job) == "running"
    assert served.wait(handle.job, 60).finish_reason == "cancelled"
    assert served.wait(served.submit_prepared(said("hi")).job, 60).error is None


def test_a_missed_cancel_command_is_seen_at_the_next_heartbeat(
    client: Client, connection: redis.Redis, start_null: Callable[..., NullWorker]
) -> None:
    """The command may arrive before the worker knows that it has claimed the job."""
    start_null("--decode-ms", "50")
    handle = client.submit_prepared(said(TALK), options={"max_new_tokens": 900}, stream=True)
    next(client.stream(handle.job, 60))
    connection.hset(keys.job(handle.job), "worker_name", "nobody")
    assert client.cancel(handle.job) == "running"
    assert client.wait(handle.job, 30).finish_reason == "cancelled"


def test_a_deadline_that_passes_in_the_queue_ends_the_job(client: Client, start_worker: Start) -> None:
    late = client.submit_prepared(said("hi"), timeout=0.01)
    in_time = client.submit_prepared(said("hi"), timeout=600)
    start_worker()
    result = client.wait(late.job, 60)
    assert (result.finish_reason, result.error and result.error.code) == ("deadline", "deadline")
    assert client.wait(in_time.job, 60).error is None


def test_a_deadline_that_passes_during_an_answer_keeps_the_text_so_far(served: Client) -> None:
    full = served.wait(served.submit_prepared(said(TALK), options=ANSWER_OF_960).job, 60)
    assert full.timings.end_to_end
    part = full.timings.end_to_end / 4
    cut = served.wait(served.submit_prepared(said(TALK), options=ANSWER_OF_960, timeout=part).job, 60)
    assert cut.finish_reason == "deadline" and full.text.startswith(cut.text) and cut.text != full.text


def test_high_priority_goes_first(client: Client, start_worker: Start) -> None:
    """It is claimed first. Jobs that are claimed with it may still get a slot earlier."""
    normal = [client.submit_prepared(said("hi")) for _ in range(40)]
    urgent = client.submit_prepared(said("hi"), priority="high")
    start_worker()
    finished = client.wait(urgent.job, 60).finished_at
    before = sum(client.wait(handle.job, 60).finished_at < finished for handle in normal)
    assert before < len(normal) / 2


def test_a_failed_turn_does_not_block_its_conversation(served: Client) -> None:
    turns = [
        served.submit_prepared(said("hi"), conversation="one-fails"),
        served.submit_prepared(said("word " * 30_000), conversation="one-fails"),
        served.submit_prepared(shown(), conversation="one-fails", timeout=0.001),
        served.submit_prepared(said("hi"), conversation="one-fails"),
    ]
    results = [served.wait(turn.job, 60) for turn in turns]
    assert [result.error and result.error.code for result in results] == [None, "too_long", "deadline", None]
    assert [turn.turn for turn in served.history("one-fails")] == [0, 3]
    served.clear("one-fails")
    assert served.history("one-fails") == [] and "one-fails" in served.conversations()
    again = served.submit_prepared(said("hi"), conversation="one-fails")
    assert again.turn == 4
    assert served.wait(again.job, 60).usage.prompt_tokens == results[0].usage.prompt_tokens


def test_frames_that_expired_are_named(client: Client, connection: redis.Redis, start_worker: Start) -> None:
    prepared = shown()
    handle = client.submit_prepared(prepared)
    connection.delete(keys.clip(next(iter(prepared.blobs))))
    start_worker()
    error = client.wait(handle.job, 60).error
    assert error and error.code == "bad_media" and "expired" in error.message


def test_media_that_cannot_fit_are_refused_before_they_are_fetched(served: Client) -> None:
    """Decoded, these frames would take 154 GB."""
    huge = FramesPart(type="video", blob="0" * 64, frames=768, height=8176, width=8176)
    long = FramesPart(type="video", blob="0" * 64, frames=768, height=84, width=84)
    for part in (huge, long):
        prepared = Prepared((Message(role="user", content=(part,)),), {}, 0)
        error = served.wait(served.submit_prepared(prepared).job, 60).error
        assert error and error.code == "too_long"


def test_an_expired_turn_does_not_block_its_conversation(
    redis_url: str, client: Client, connection: redis.Redis, start_worker: Start
) -> None:
    with Client(settings=Settings(redis_url=redis_url, job_ttl=1)) as brief:
        expired = brief.submit_prepared(said("hi"), conversation="c")
    turns = [client.submit_prepared(said("hi"), conversation="c") for _ in range(2)]
    with pytest.raises(NotFound):
        client.wait(expired.job, 60)
    start_worker()
    assert [client.wait(turn.job, 60).error for turn in turns] == [None, None]


def test_high_priority_goes_first_when_its_turn_comes(
    client: Client, connection: redis.Redis, answerer: Answerer
) -> None:
    first, second, _ = [client.submit_prepared(said("hi"), conversation="c", priority=priority).job
                        for priority in ("normal", "high", "normal")]
    other = client.submit_prepared(said("hi")).job
    answerer.answer(first, "yes")
    assert connection.lrange(keys.waiting(QUEUE), 0, -1) == [second.encode(), other.encode()]


def test_a_job_that_somebody_moves_to_another_models_queue_is_answered_by_it(served: Client) -> None:
    handle = served.submit_prepared(said("hi"), model="other")
    served.connection.rpush(keys.waiting(QUEUE), handle.job)
    assert served.wait(handle.job, 60).error is None  # the worker of that queue answers it


def test_a_turn_whose_history_cannot_be_read_ends_as_an_error(served: Client) -> None:
    served.connection.hset(keys.conversation("unreadable"), "turns", 1)
    served.connection.rpush(keys.turns("unreadable"), "no turn")
    handle = served.submit_prepared(said("hi"), conversation="unreadable")
    error = served.wait(handle.job, 60).error
    assert error and error.code == "bad_request"


@pytest.mark.proof
def test_a_killed_workers_job_is_run_again_by_another_and_streams_are_not_mixed(
    client: Client, connection: redis.Redis, start_null: Callable[..., NullWorker]
) -> None:
    workers = {worker.pid: worker for worker in (start_null("--decode-ms", "20") for _ in range(2))}
    handle = client.submit_prepared(said(TALK), options={"max_new_tokens": 300}, stream=True)
    chunks = client.stream(handle.job, 60)
    text = next(chunks).text
    name = connection.hget(keys.job(handle.job), "worker_name").decode()
    workers.pop(int(connection.hget(keys.worker(name), "pid"))).kill()
    for chunk in chunks:
        if chunk.restarted:
            text = ""
        text += chunk.text
    result = client.wait(handle.job, 60)
    assert result.attempt == 2 and result.worker != name and text == result.text
    assert all(worker.alive for worker in workers.values())


def test_a_job_whose_workers_all_die_ends_as_an_error(
    client: Client, connection: redis.Redis, start_null: Callable[..., NullWorker], eventually: Eventually
) -> None:
    handle = client.submit_prepared(
        said(TALK), options={"max_new_tokens": 600}, conversation="mine", metadata={"camera": 3}
    )
    connection.hset(keys.job(handle.job), "spent", MAX_ATTEMPTS - 1)
    worker = start_null("--decode-ms", "100")
    eventually(lambda: connection.hget(keys.job(handle.job), "spent") == str(MAX_ATTEMPTS).encode())
    worker.kill()
    start_null()
    result = client.wait(handle.job, 60)
    assert result.error and result.error.code == "internal" and "died" in result.error.message
    assert (result.conversation, result.metadata) == ("mine", {"camera": 3})
    eventually(lambda: connection.zcard(f"rq:failed:{QUEUE}") == 1)


def test_sigterm_lets_the_running_job_finish_and_takes_no_other(
    client: Client, worker: ManagedProcess
) -> None:
    running = client.submit_prepared(said(TALK), options=ANSWER_OF_960, stream=True)
    next(client.stream(running.job, 60))
    assert worker.stop(30) == 0  # one SIGTERM: a second would make it leave at once
    assert client.wait(running.job, 1).finish_reason in {"stop", "length"}
    waiting = client.submit_prepared(said("hi"))
    assert client.result(waiting.job) is None
    assert client.connection.zrange(keys.WORKERS, 0, -1) == []


def test_a_worker_holds_four_connections_whatever_its_slots(
    redis_url: str, connection: redis.Redis, start_worker: Start
) -> None:
    others = {seen["id"] for seen in connection.client_list()}
    start_worker("--slots", "8")
    with Client(redis_url) as client:
        handles = [client.submit_prepared(said("hi"), options=SHORT, stream=True) for _ in range(40)]
        for handle in handles:
            client.wait(handle.job, 60)
    theirs = [seen for seen in connection.client_list() if seen["id"] not in others]
    assert len(theirs) <= 4, theirs


def test_handles_are_plain_records(client: Client) -> None:
    handle = client.submit_prepared(said("hi"), conversation="mine")
    assert handle == JobHandle(handle.job, "mine", 0) and client.result(handle.job) is None
    with pytest.raises(NotFound):
        client.result("nosuchjob")
    with pytest.raises(NotFound):
        client.wait("nosuchjob", 60)
