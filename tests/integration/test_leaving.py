"""How workers end: drained, by a second signal, with a hung device, or before they take jobs. Also leases."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.shared import keys
from sailq.shared.jobs import Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.workers import live_workers
from sailq.worker.process.watchdog import EXIT_CODE
from sailq.worker.queue.job_store import LEASE_SECONDS

NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"
Start = Callable[..., ManagedProcess]
Eventually = Callable[..., None]

HI = Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)


@pytest.fixture
def start_null_worker(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts null workers; `ready`: wait until it has announced itself."""
    with ExitStack() as stack:
        count = 0

        def start(*arguments: str, ready: bool = True) -> ManagedProcess:
            nonlocal count
            count += 1
            log = tmp_path / f"worker-{count}.log"
            command = [sys.executable, str(NULL_WORKER), "--redis-url", redis_url, "--slots", "4", *arguments]
            worker = ManagedProcess("worker", command, log)
            stack.callback(worker.stop)
            if ready:
                with Client(redis_url) as client:
                    worker.wait_until(lambda: worker.pid in {one.pid for one in live_workers(client.connection)}, 60)
            return worker

        yield start


LONG = 900
"""Tokens of an answer that takes 45 s at 50 ms each: it does not end by itself before the test ends it."""


def waiting(connection: redis.Redis) -> set[str]:
    """The jobs on the queue."""
    return {job.decode() for job in connection.lrange("rq:queue:sailq3-sailq-tiny", 0, -1)}


def submit(client: Client, tokens: int, count: int = 4) -> list[str]:
    options = {"max_new_tokens": tokens}
    return [client.submit_prepared(HI, options=options, stream=True).job for _ in range(count)]


def test_a_drained_worker_finishes_running_jobs_and_takes_no_new_ones(
    start_null_worker: Start, client: Client
) -> None:
    worker = start_null_worker("--decode-ms", "10")
    running = submit(client, 100)
    for job in running:
        next(client.stream(job, 60))
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait_until(lambda: "stopping" in worker.tail(), 60)
    (late,) = submit(client, 5, count=1)
    assert [client.wait(job, 60).attempt for job in running] == [1] * 4
    assert worker.stop(20) == 0  # the signal may arrive during its shutdown
    assert client.result(late) is None
    start_null_worker()
    assert client.wait(late, 60).attempt == 1


def test_jobs_that_do_not_end_in_time_are_run_by_another_worker(
    start_null_worker: Start, client: Client, connection: redis.Redis
) -> None:
    worker = start_null_worker("--decode-ms", "50", "--drain-seconds", "0.5")
    jobs = submit(client, LONG)
    for job in jobs:
        next(client.stream(job, 60))
    assert worker.stop(30) == 0
    assert waiting(connection) == set(jobs)  # at once, not at the end of a lease
    other = start_null_worker()
    results = [client.wait(job, 60) for job in jobs]
    assert [result.attempt for result in results] == [2] * 4
    assert all(result.error is None and str(other.pid) in (result.worker or "") for result in results)


def test_a_second_signal_returns_running_jobs_at_once(
    start_null_worker: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    worker = start_null_worker("--decode-ms", "50")
    jobs = submit(client, LONG)
    for job in jobs:
        next(client.stream(job, 60))
    os.kill(worker.pid, signal.SIGTERM)
    eventually(lambda: "stopping" in worker.tail())
    assert worker.stop(30) == 0
    assert waiting(connection) == set(jobs)
    start_null_worker()
    assert [client.wait(job, 60).attempt for job in jobs] == [2] * 4


def test_a_hung_device_ends_the_worker_and_its_jobs_finish_elsewhere(
    start_null_worker: Start, client: Client, eventually: Eventually
) -> None:
    worker = start_null_worker("--hang-at", "100", "--device-timeout", "1", "--decode-ms", "5")
    jobs = submit(client, 300)
    started = [next(client.stream(job, 60)) for job in jobs]
    assert started
    other = start_null_worker()
    eventually(lambda: _state(worker.pid) == "Z")
    assert worker.stop(1) == EXIT_CODE
    assert "decode on null runner has not returned for 1 s" in worker.tail()
    results = [client.wait(job, 60) for job in jobs]
    assert all(result.error is None and str(other.pid) in (result.worker or "") for result in results)


def test_a_device_that_fails_ends_the_worker_and_its_jobs_finish_elsewhere(
    start_null_worker: Start, client: Client
) -> None:
    worker = start_null_worker("--fail-at", "100", "--decode-ms", "5")
    jobs = submit(client, 300)
    assert [next(client.stream(job, 30)) for job in jobs]
    other = start_null_worker()
    with pytest.raises(Exception, match=f"exit {EXIT_CODE}"):
        worker.wait_until(lambda: False, 60)
    assert "SAIL failed to run block_cache_0: SailEngineError" in worker.tail()
    results = [client.wait(job, 60) for job in jobs]
    assert all(result.error is None and str(other.pid) in (result.worker or "") for result in results)


def test_a_worker_whose_device_hangs_or_fails_in_its_self_test_takes_no_job(
    start_null_worker: Start, client: Client
) -> None:
    (job,) = submit(client, 3, count=1)
    flaky = start_null_worker("--flaky", ready=False)
    hung = start_null_worker("--hang-at", "1", "--device-timeout", "1", ready=False)
    failing = start_null_worker("--fail-at", "1", ready=False)
    for worker, code, words in (
        (flaky, 1, "failed its self-test"), (hung, EXIT_CODE, "has not returned"), (failing, 1, "SAIL failed to run"),
    ):
        with pytest.raises(Exception, match=f"exit {code}"):
            worker.wait_until(lambda: False, 60)
        assert words in worker.tail()
    assert client.result(job) is None
    assert live_workers(client.connection) == []


def test_a_box_with_a_slow_clock_keeps_its_leases(
    start_null_worker: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    """A lease ends by the server's time, whatever the box thinks: no other worker takes its job. RQ's tools never take
    a job for abandoned, whatever their machines think."""
    start_null_worker("--decode-ms", "20")
    (job,) = submit(client, 50, count=1)
    next(client.stream(job, 60))
    ((lease, end),) = connection.zrange(keys.LEASES, 0, -1, withscores=True)
    now = connection.time()[0]
    assert now < end <= now + 1 + LEASE_SECONDS
    assert connection.zrange("rq:wip:sailq3-sailq-tiny", 0, -1, withscores=True) == [(lease, math.inf)]
    for key in (keys.LEASES, "rq:wip:sailq3-sailq-tiny"):
        connection.zadd(key, {b"\xff\xfe": 1, "no-lease": 1, "a:b:c": 1})
    assert client.wait(job, 60).attempt == 1
    start_null_worker()
    (again,) = submit(client, 5, count=1)
    assert client.wait(again, 60).error is None
    eventually(lambda: not connection.exists(keys.LEASES))


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
