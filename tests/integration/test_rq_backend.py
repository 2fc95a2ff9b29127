"""A backend with only `rq` and the serializer, and a real worker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from farm import NullWorker
from rq import Callback, Queue, Repeat, Retry
from rq.group import Group
from rq.job import Dependency, Job
from rq.rate_limit import RateLimit
from rq.results import Result
from rq.webhook import Webhook

from sailq.producer.client import Client
from sailq.shared.rqjob import FAILURE_TTL, Serializer

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]
FAILING = [{"role": "user", "content": [{"type": "text", "text": "Hello. " * 200}]}]
"""More tokens than FAILING_WORKER takes."""
FAILING_WORKER = ("--failing-prompt", "200")
SLOW_WORKER = ("--decode-ms", "50")
SHORT = {"max_new_tokens": 2}
LONG = {"max_new_tokens": 2000}
"""100 s on a slow worker: what ends sooner was ended."""
Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


@pytest.fixture
def queue(connection: redis.Redis) -> Queue:
    return Queue("sailq3-sailq-tiny", connection=connection, serializer=Serializer)


def ask(queue: Queue, messages: Any = MESSAGES, options: Any = SHORT, **rest: Any) -> Job:
    return queue.enqueue("sailq.answer", messages=messages, options=options, **rest)


def has_ended(job: Job) -> bool:
    return job.latest_result() is not None


def test_a_job_is_followed_from_its_place_in_the_queue_to_its_answer(
    queue: Queue, start_null: Start, eventually: Eventually
) -> None:
    second, third = ask(queue), ask(queue)
    first = ask(queue, options={"max_new_tokens": 60}, at_front=True)
    assert [job.get_position() for job in (first, second, third)] == [0, 1, 2]
    assert {job.get_status() for job in (first, second, third)} == {"queued"}
    worker = start_null(*SLOW_WORKER)
    eventually(lambda: first.get_status() == "started")
    assert first.get_position() is None and len(queue.started_job_registry) >= 1
    eventually(lambda: {job.get_status() for job in (first, second, third)} == {"finished"})
    answer = first.return_value()
    assert answer["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 60 and answer["text"]
    assert answer["error"] is None and answer["job"] == first.id
    fetched = Job.fetch(first.id, connection=queue.connection, serializer=Serializer)
    assert fetched.return_value() == answer and fetched.started_at <= fetched.ended_at
    assert set(queue.finished_job_registry.get_job_ids()) == {first.id, second.id, third.id}
    assert len(queue) == len(queue.started_job_registry) == 0 and worker.alive


def test_a_result_of_any_size_comes_back_as_a_dict(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    metadata = {"what": "x" * 1_000_000, "who": [1, None, {"a": 0.5}]}
    job = ask(queue, metadata=metadata)
    start_null()
    eventually(lambda: has_ended(job))
    assert job.return_value()["metadata"] == metadata


def test_id_description_and_meta_of_a_job_are_kept(
    queue: Queue, start_null: Start, eventually: Eventually
) -> None:
    made = ask(queue, job_id="photo-7_a", meta={"user": 7}, description="a photo", priority="high")
    assert made.id == "photo-7_a"
    start_null()
    eventually(lambda: has_ended(made))
    job = Job.fetch("photo-7_a", connection=queue.connection, serializer=Serializer)
    assert (job.meta, job.description) == ({"user": 7}, "a photo")
    assert job.return_value()["conversation"] == "photo-7_a"


def test_ttls_are_the_jobs_own(
    queue: Queue, connection: redis.Redis, start_null: Start, eventually: Eventually
) -> None:
    expired = ask(queue, ttl=1)
    eventually(lambda: not Job.exists(expired.id, connection))
    asked = {ttl: ask(queue, result_ttl=ttl) for ttl in (None, 0, 60, -1)}
    failed = {ttl: ask(queue, FAILING, failure_ttl=ttl) for ttl in (None, 0, 60, -1)}
    last = ask(queue)
    start_null(*FAILING_WORKER, "--slots", "1")
    eventually(lambda: has_ended(last) and len(queue.started_job_registry) == 0)
    for jobs, default in ((asked, 500), (failed, FAILURE_TTL)):
        left = {ttl: connection.ttl(job.key) for ttl, job in jobs.items()}
        assert left[0] == -2 and left[-1] == -1
        assert 0 < left[60] <= 60 and default - 60 < left[None] <= default
    assert set(queue.failed_job_registry.get_job_ids()) == {failed[ttl].id for ttl in (None, 60, -1)}
    assert not connection.exists(f"sailq:result:{expired.id}")


def test_a_job_timeout_ends_the_answer(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    job = ask(queue, options=LONG, job_timeout=1)
    start_null(*SLOW_WORKER)
    eventually(lambda: has_ended(job))
    assert job.return_value()["finish_reason"] == "deadline" and job.get_status() == "finished"


def test_a_waiting_job_is_cancelled(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    job, other = ask(queue), ask(queue)
    job.cancel()
    assert job.get_position() is None and other.get_position() == 0
    start_null()
    eventually(lambda: has_ended(job) and has_ended(other))
    assert job.return_value()["finish_reason"] == "cancelled" and job.get_status() == "canceled"
    assert job.return_value()["usage"]["completion_tokens"] == 0
    assert other.get_status() == "finished"


def test_a_running_job_is_cancelled(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    start_null(*SLOW_WORKER)
    job = ask(queue, options=LONG)
    eventually(lambda: job.get_status() == "started")
    job.cancel()
    eventually(lambda: has_ended(job))
    assert job.return_value()["finish_reason"] == "cancelled" and job.get_status() == "canceled"
    other = ask(queue)
    eventually(lambda: has_ended(other))
    assert len(Result.all(job, serializer=Serializer)) == 1 and len(queue.started_job_registry) == 0


def test_many_jobs_are_enqueued_at_once(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    jobs = queue.enqueue_many([
        Queue.prepare_data("sailq.answer", kwargs={"messages": MESSAGES, "options": SHORT}, job_id=f"many-{number}")
        for number in range(20)
    ])
    assert [job.get_position() for job in jobs] == list(range(20))
    start_null()
    eventually(lambda: all(map(has_ended, jobs)))
    assert [job.return_value()["job"] for job in jobs] == [f"many-{number}" for number in range(20)]


def test_dependents_run_after_what_they_depend_on(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    first, alone = ask(queue), ask(queue)
    second = ask(queue, depends_on=first)
    third = ask(queue, depends_on=[second, alone], at_front=True)
    assert [job.get_status() for job in (first, second, third)] == ["queued", "deferred", "deferred"]
    start_null()
    jobs = [first, second, third]
    eventually(lambda: all(map(has_ended, jobs)))
    finished = [job.return_value()["finished_at"] for job in jobs]
    assert finished == sorted(finished) and {job.get_status() for job in jobs} == {"finished"}
    assert len(queue.deferred_job_registry) == 0
    late = ask(queue, depends_on=third)
    eventually(lambda: has_ended(late))


def test_a_job_waits_for_all_that_it_depends_on(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    quick, slow = ask(queue), ask(queue, options={"max_new_tokens": 40})
    both = ask(queue, depends_on=[quick, slow])
    start_null(*SLOW_WORKER)
    eventually(lambda: has_ended(both))
    assert slow.return_value()["finished_at"] <= both.return_value()["finished_at"]


def test_only_those_that_allow_failure_run_after_a_failed_job(
    queue: Queue, start_null: Start, eventually: Eventually
) -> None:
    failing = ask(queue, FAILING)
    strict = ask(queue, depends_on=failing)
    after_strict = ask(queue, depends_on=strict)
    tolerant = ask(queue, depends_on=Dependency(failing, allow_failure=True))
    start_null(*FAILING_WORKER)
    eventually(lambda: has_ended(tolerant))
    assert failing.get_status() == "failed" and tolerant.get_status() == "finished"
    failure = failing.latest_result()
    assert failure.type == Result.Type.FAILED and "out of memory" in failure.exc_string
    assert failing.return_value() is None
    assert {strict.get_status(), after_strict.get_status()} == {"deferred"} and len(queue) == 0


def test_dependents_of_a_job_that_expired_while_it_waited_run(
    queue: Queue, connection: redis.Redis, start_null: Start, eventually: Eventually
) -> None:
    expired = ask(queue, ttl=1)
    dependent = ask(queue, depends_on=expired)
    eventually(lambda: not Job.exists(expired.id, connection))
    start_null()
    eventually(lambda: has_ended(dependent))


def test_dependents_that_a_dead_program_released_in_part_run(
    queue: Queue, connection: redis.Redis, start_null: Start, eventually: Eventually
) -> None:
    first = ask(queue)
    dependent = ask(queue, depends_on=first)
    with connection.pipeline() as pipeline:
        pipeline.watch(first.dependents_key)
        first.cancel(pipeline=pipeline, enqueue_dependents=True)
        pipeline.execute()  # and the program dies before it calls enqueue_ready_jobs_by_queue
    assert dependent.get_status() == "ready_to_enqueue"
    start_null()
    eventually(lambda: has_ended(dependent))
    assert dependent.get_status() == "finished" and first.get_status() == "canceled"


def test_unsupported_features_are_refused(
    queue: Queue, connection: redis.Redis, start_null: Start, eventually: Eventually
) -> None:
    callback, call = Callback("os.getcwd"), {"messages": MESSAGES, "options": SHORT}
    limited = {"rate_limit": RateLimit("camera", 1)}
    data = Queue.prepare_data("sailq.answer", kwargs=call)
    grouped = Group.create(connection=connection).enqueue_many(queue, [data])
    unsupported = {
        "another function": queue.enqueue("os.getcwd"),
        "a callback on success": ask(queue, on_success=callback),
        "a callback on failure": ask(queue, on_failure=callback),
        "a callback on stop": ask(queue, on_stopped=callback),
        "webhooks": ask(queue, webhooks=[Webhook("http://127.0.0.1:9/", "finished")]),
        "repeat": ask(queue, repeat=Repeat(times=1)),
        "retry": ask(queue, retry=Retry(max=3)),
        "rate_limit, in its turn": ask(queue, **limited),
        "rate_limit, held back": ask(queue, **limited),
        "enqueue_in": queue.enqueue_in(timedelta(hours=1), "sailq.answer", **call),
        "enqueue_at": queue.enqueue_at(datetime.now(timezone.utc) + timedelta(days=1), "sailq.answer", **call),
        "a group": grouped[0],
    }
    bad = {
        "a positional argument": queue.enqueue("sailq.answer", MESSAGES),
        "an unknown argument": ask(queue, temperature=1.0),
        "an unknown option": ask(queue, options={"temprature": 1.0}),
        "an option out of its range": ask(queue, options={"max_new_tokens": 0}),
        "no messages": queue.enqueue("sailq.answer", options=SHORT),
        "messages that are none": ask(queue, "Hello."),
        "a long id": ask(queue, job_id="x" * 200),
    }
    start_null()
    codes = {name: "unsupported" for name in unsupported} | {name: "bad_request" for name in bad}
    jobs = unsupported | bad
    eventually(lambda: all(map(has_ended, jobs.values())))
    assert {name: job.return_value()["error"]["code"] for name, job in jobs.items()} == codes
    assert {job.get_status() for job in jobs.values()} == {"finished"}
    assert len(queue) == len(queue.scheduled_job_registry) == len(queue.started_job_registry) == 0


@pytest.mark.proof
def test_a_job_enqueued_with_the_id_of_one_that_has_ended_begins_anew(
    queue: Queue, connection: redis.Redis, redis_url: str, start_null: Start, eventually: Eventually
) -> None:
    start_null(*SLOW_WORKER, *FAILING_WORKER)

    def end(job: Job, status: str) -> None:
        eventually(lambda: has_ended(job) and job.get_status() == status)

    end(ask(queue, FAILING, job_id="nightly"), "failed")
    for _ in range(4):  # more often than a job has attempts
        end(ask(queue, job_id="nightly"), "finished")
        assert connection.hmget("rq:job:nightly", "spent", "cancel") == [b"1", None]
        assert not queue.failed_job_registry.get_job_ids()
    running = ask(queue, options=LONG, job_id="nightly")
    eventually(lambda: running.get_status() == "started")
    with Client(redis_url) as client:
        assert client.cancel("nightly") == "running"
    end(running, "canceled")
    end(ask(queue, job_id="nightly"), "finished")
    assert running.return_value()["finish_reason"] == "length"
    assert not queue.canceled_job_registry.get_job_ids()


def test_a_job_enqueued_with_the_id_of_one_that_was_cancelled_runs(
    queue: Queue, start_null: Start, eventually: Eventually
) -> None:
    ask(queue, job_id="waiting").cancel()
    waiting = ask(queue, job_id="waiting")
    start_null(*SLOW_WORKER)
    eventually(lambda: has_ended(waiting))
    running = ask(queue, options=LONG, job_id="running")
    eventually(lambda: running.get_status() == "started")
    running.cancel()
    running = ask(queue, job_id="running")
    eventually(lambda: has_ended(running))
    for job in (waiting, running):
        assert job.get_status() == "finished" and job.return_value()["finish_reason"] == "length"
    eventually(lambda: not queue.canceled_job_registry.get_job_ids())


def test_dependents_of_a_refused_job_run(queue: Queue, start_null: Start, eventually: Eventually) -> None:
    refused = queue.enqueue("os.getcwd")
    dependent = ask(queue, depends_on=refused)
    start_null()
    eventually(lambda: has_ended(dependent))
    assert dependent.return_value()["error"] is None
