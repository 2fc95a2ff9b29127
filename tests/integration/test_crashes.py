"""Workers are killed or stopped at any time: no job is lost, duplicated or late."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
import redis
from farm import NullWorker
from null_jobs import assert_once, claimed_at, server_time, submit

from sailq.producer.client import Client
from sailq.shared import keys

RE_RUN_SECONDS = 10.0
"""Within this time of its worker's end a job is run by another, or again by the same."""
Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


def pid_of(worker: str) -> int:
    return int(worker.split("-")[-2])


def claims(connection: redis.Redis) -> dict[int, dict[str, int]]:
    """The jobs that each worker, by pid, has claimed and not finished, with the number of its attempt."""
    jobs = {entry.decode().split(":")[0] for entry in connection.zrange(keys.LEASES, 0, -1)}
    with connection.pipeline() as pipeline:
        for job in jobs:
            pipeline.hmget(keys.job(job), "worker_name", "attempt")
        found = pipeline.execute()
    by_worker: dict[int, dict[str, int]] = {}
    for job, (worker, attempt) in zip(jobs, found, strict=True):
        if worker:
            by_worker.setdefault(pid_of(worker.decode()), {})[job] = int(attempt)
    return by_worker


@pytest.mark.proof
@pytest.mark.timeout(180)
@pytest.mark.alone
def test_20_kills_of_workers_with_8_jobs_in_flight_lose_no_job(
    start_null: Start, client: Client, connection: redis.Redis
) -> None:
    """400 jobs, or more if those are answered before the 20th kill."""
    workers = {worker.pid: worker for worker in (start_null("--decode-ms", "25") for _ in range(3))}
    tokens, kills = 50, 20
    jobs = [submit(client, tokens) for _ in range(400)]
    began = time.monotonic()
    killed_at: dict[str, float] = {}
    losses: Counter[str] = Counter()

    def victim() -> int | None:
        """A worker whose jobs are all at their first attempt, because a third attempt would run alone."""
        for pid, attempts in claims(connection).items():
            if pid in workers and len(attempts) >= 8 and set(attempts.values()) == {1}:
                return pid
        return None

    for kill in range(kills):
        while (answered := len(connection.keys(keys.result("*")))) < 14 * kill or (pid := victim()) is None:
            assert time.monotonic() - began < 120
            if len(jobs) - answered < 48:  # two workers' slots and as many that wait
                jobs.append(submit(client, tokens))
            time.sleep(0.02)
        workers.pop(pid).kill()
        lost = claims(connection)[pid]
        killed_at |= dict.fromkeys(lost, server_time(connection))
        losses.update(lost)
        worker = start_null("--decode-ms", "25", ready=False)
        workers[worker.pid] = worker
    results = {result.job: result for result in assert_once(client, jobs, tokens, 60)}
    took = time.monotonic() - began
    waits = [claimed_at(results[job]) - at for job, at in killed_at.items()]
    print(f"\nfigure: {kills} kills of workers, {len(jobs)} jobs in {took:.0f} s: {len(results)} results, {len(waits)} "
          f"jobs run again, the last of them {max(waits):.1f} s after its worker's end")
    assert len(waits) >= 8 * kills
    assert {job: result.attempt - 1 for job, result in results.items() if result.attempt > 1} == losses
    assert max(waits) < RE_RUN_SECONDS


@pytest.mark.parametrize("step", [
    "claimed", *(pytest.param(step, marks=pytest.mark.proof) for step in ("begun", "answered", "finished")),
])
def test_a_worker_killed_between_two_steps_of_a_job_loses_none(
    start_null: Start, client: Client, connection: redis.Redis, step: str
) -> None:
    jobs = [submit(client, 5, f"c-{number % 2}") for number in range(6)]
    ends = []
    for _ in range(2):
        worker = start_null("--die-at", step, ready=False)
        worker.wait_for_end(20)
        ends.append(server_time(connection))
    start_null()
    results = assert_once(client, jobs, 5, 60)
    waits = [min(claimed_at(result) - end for end in ends) for result in results]
    print(f"\nfigure: workers killed when they had {step}: {len(results)} results, the last job begun "
          f"{max(waits):.1f} s after")
    assert max(waits) < RE_RUN_SECONDS


def test_a_dead_workers_job_is_recovered_even_if_another_record_is_garbled(
    start_null: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    worker = start_null("--decode-ms", "50")
    garbled, *jobs = [submit(client, 100) for _ in range(4)]
    eventually(lambda: all(connection.exists(keys.stream(job)) for job in (garbled, *jobs)))
    worker.kill()
    connection.hset(keys.job(garbled), "data", "abc")
    start_null("--decode-ms", "10")
    assert all(result.attempt == 2 for result in assert_once(client, jobs, 100, 60, all_of_it=False))
    result = client.wait(garbled, 60)
    assert result.error and result.error.code == "bad_request"


@pytest.mark.proof
def test_a_job_whose_workers_die_while_it_runs_and_before_it_begins_is_not_lost(
    start_null: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    (job,) = jobs = [submit(client, 40)]
    worker = start_null("--decode-ms", "20")
    eventually(lambda: connection.exists(keys.stream(job)))
    worker.kill()
    start_null("--die-at", "claimed", ready=False).wait_for_end(20)
    start_null("--decode-ms", "20")
    (result,) = assert_once(client, jobs, 40, 60)
    assert result.attempt == 3


def stop_in_mid_answer(connection: redis.Redis, eventually: Eventually, worker: NullWorker, job: str) -> None:
    """SIGSTOPs the worker of a job when it has streamed for half a second."""
    eventually(lambda: connection.xlen(keys.stream(job)) >= 10)
    worker.signal(signal.SIGSTOP)


@pytest.mark.proof
def test_a_worker_stopped_for_30_s_finishes_a_job_that_another_has_finished(
    start_null: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    stale = start_null("--decode-ms", "20")
    jobs = [submit(client, 100) for _ in range(8)]
    stop_in_mid_answer(connection, eventually, stale, jobs[0])
    stopped = time.monotonic()
    other = start_null("--decode-ms", "20")
    results = assert_once(client, jobs, 100, 60)
    assert all(result.attempt == 2 and pid_of(result.worker) == other.pid for result in results)
    eventually(lambda: time.monotonic() - stopped >= 30, 31)
    stale.signal(signal.SIGCONT)
    eventually(lambda: stale.log.read_text().count("this one's result is dropped") == len(jobs))
    assert assert_once(client, jobs, 100, 60) == results
    other.kill()
    after = submit(client, 5)
    assert client.wait(after, 60).error is None
    print(f"\nfigure: a worker stopped for 30 s: {len(jobs)} results of its {len(jobs)} jobs, all the other worker's")


@pytest.mark.proof
def test_a_stale_workers_result_is_not_written(
    start_null: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    """It ends while another worker still runs the job: the next turn waits for that one, and that one may die, too."""
    stale = start_null("--decode-ms", "20")
    first, _ = jobs = [submit(client, 100, "c") for _ in range(2)]
    stop_in_mid_answer(connection, eventually, stale, first)
    other = start_null("--decode-ms", "50")
    eventually(lambda: claims(connection).get(other.pid) == {first: 2})
    stale.signal(signal.SIGCONT)
    eventually(lambda: "this one's result is dropped" in stale.log.read_text())
    assert claims(connection) == {other.pid: {first: 2}} and client.result(first) is None
    other.kill()
    results = assert_once(client, jobs, 100, 60)
    assert [result.attempt for result in results] == [3, 1]
    assert claimed_at(results[1]) > results[0].finished_at
