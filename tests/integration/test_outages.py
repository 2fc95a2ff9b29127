"""Broken connections and outages of the server: no job is lost, duplicated or stuck, and no worker exits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from answering import TTLS, take
from asking import ANSWER_OF_960
from farm import NullWorker
from null_jobs import submit
from proxy import Proxy

from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.shared import keys
from sailq.shared.connection import ServerClock, connect
from sailq.shared.errors import ServerUnavailable
from sailq.shared.jobs import Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.workers import live_workers
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.process.serve import LOOK_AHEAD
from sailq.worker.queue.job_runner import JobRunner
from sailq.worker.queue.job_store import JobStore, new_execution
from sailq.worker.queue.publisher import Publisher
from sailq.worker.queue.refusals import Identity, Refusals

QUEUE = keys.queue("sailq-tiny")
Eventually = Callable[..., None]


def said(text: str) -> Prepared:
    return Prepared((Message(role="user", content=(TextPart(text=text),)),), {}, 0)


def test_a_submission_whose_reply_is_lost_is_stored_once(
    redis_url: str, server_url: str, connection: redis.Redis, folder: Path
) -> None:
    """The script ran. Without a check, a second run would make the job wait for itself as the newest turn."""
    proxy = Proxy(server_url.removeprefix("unix://"), folder / "proxy.sock", b"EVALSHA")
    with Client(f"unix://{folder}/proxy.sock?db=0") as client:
        assert client.submit_prepared(said("hi")).turn == 0  # from here on the server knows the script
        for turn in range(3):
            proxy.lose_reply.set()
            assert client.submit_prepared(said("hi"), conversation="c").turn == turn
            assert not proxy.lose_reply.is_set()
    proxy.close()
    alone, first, *others = [key.decode().rpartition(":")[2].encode() for key in sorted(connection.keys(keys.job("*")))]
    assert connection.lrange(keys.waiting(QUEUE), 0, -1) == [alone, first]
    assert connection.lrange(f"{keys.conversation('c')}:waiting", 0, -1) == others and len(others) == 2


def test_a_claim_whose_reply_is_lost_is_one_attempt(server_url: str, client: Client, folder: Path) -> None:
    jobs = [client.submit_prepared(said("hi")).job for _ in range(2)]
    proxy = Proxy(server_url.removeprefix("unix://"), folder / "proxy.sock", b"EVALSHA")
    with connect(f"unix://{folder}/proxy.sock?db=0", retries=0) as connection:
        store = JobStore(connection, connection, TTLS, "w")
        assert store.claim([QUEUE], new_execution(), 1.0)  # from here on the server knows the script
        proxy.lose_reply.set()
        execution = new_execution()
        with pytest.raises(redis.ConnectionError):
            store.claim([QUEUE], execution, 1.0)
        assert not proxy.lose_reply.is_set()
        claim = store.claim([QUEUE], execution, 1.0, again=True)
        assert claim and (claim.job, claim.attempt) == (jobs[1], 1) and len(store.history(jobs[1])) == 1
        assert store.claim([QUEUE], new_execution(), 1.0) is None
    proxy.close()


def test_an_outage_ends_no_worker_and_loses_no_job(folder: Path, eventually: Eventually) -> None:
    """It comes while every place is taken, so that the worker meets it in its maintenance and at its jobs' ends."""
    socket_path, log = folder / "s.sock", folder / "worker.log"
    with ExitStack() as stack:
        with embedded_server(unix=socket_path, data=folder / "data") as server:
            url = server.url
            worker = ManagedProcess("worker", sailq_command("worker", "--redis-url", url, "--slots", "1"), log)
            stack.callback(worker.stop)
            client = stack.enter_context(Client(url))
            worker.wait_until(lambda: live_workers(client.connection), 90)
            jobs = [client.submit_prepared(said("Tell me."), options=ANSWER_OF_960, stream=True).job]
            jobs += [client.submit_prepared(said("Tell me."), stream=True).job for _ in range(5)]
            next(client.stream(jobs[0], 60))
            taken = 1 + LOOK_AHEAD  # the worker has one slot
            eventually(lambda: sum(client.connection.hexists(keys.job(job), "execution") for job in jobs) == taken)
        kept = "its result is kept"
        eventually(lambda: log.read_text().count(kept) == taken)
        worker.check()
        with embedded_server(unix=socket_path, data=folder / "data"):
            for job in jobs:
                result = client.wait(job, 60)
                assert result.error is None and result.finish_reason in {"stop", "length"}
            worker.check()
        assert worker.stop(30) == 0
        assert "Traceback" not in log.read_text().split("stopping:")[1]


CUT_SECONDS = 30.0


@pytest.mark.proof
@pytest.mark.parametrize("forget", [False, True], ids=["delayed", "forgotten"])
def test_a_link_cut_for_30_s_loses_nothing_and_both_sides_recover(
    server_url: str, client: Client, folder: Path, start_null: Callable[..., NullWorker], eventually: Eventually,
    forget: bool,
) -> None:
    """Data sent before the cut arrive after it, or never."""
    proxy = Proxy(server_url.removeprefix("unix://"), folder / "proxy.sock")
    url = f"unix://{folder}/proxy.sock?db=0"
    workers = [start_null("--decode-ms", "20", "--slots", "4", url=url) for _ in range(2)]
    jobs = [submit(client, 100) for _ in range(40)]
    with Client(url) as producer:
        next(producer.stream(jobs[0], 60))
        proxy.cut()
        began = time.monotonic()
        failed_after: list[float] = []

        def ask() -> None:
            with pytest.raises(ServerUnavailable):
                producer.conversations()
            failed_after.append(time.monotonic() - began)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: time.monotonic() - began >= CUT_SECONDS, 31)
        proxy.restore(forget=forget)
        fixed = time.monotonic()
        jobs.append(submit(producer, 100))
        producer_back = time.monotonic() - fixed
        done = len(client.connection.keys(keys.result("*")))
        eventually(lambda: len(client.connection.keys(keys.result("*"))) > done)
        worker_back = time.monotonic() - fixed
        asking.join(40)
        assert len(dict(client.as_completed(jobs, 40))) == len(jobs)
        everything = time.monotonic() - fixed
    fate = "forgotten" if forget else "delayed"
    print(f"\nfigure: a link cut for {CUT_SECONDS:.0f} s, what was sent {fate}: calls fail after "
          f"{failed_after[0]:.1f} s; once fixed {producer_back:.1f} s to a submission, {worker_back:.1f} s "
          f"to the next result, {everything:.1f} s to all {len(jobs)}, 0 lost")
    assert failed_after[0] < 15 and producer_back < 5 and worker_back < 15
    for job in jobs:
        result = client.result(job)
        assert result and result.error is None and [turn.job for turn in client.history(result.conversation)] == [job]
    assert all(worker.alive for worker in workers)
    proxy.close()


@pytest.fixture
def job_runner(connection: redis.Redis) -> Iterator[JobRunner]:
    """A worker's inside, without its queue."""
    engine = Engine.load(resolve("sailq-tiny"), slots=2, threads=1)
    scheduler, publisher = Scheduler(engine), Publisher(connection, 60)
    scheduler.start()
    store = JobStore(connection, connection, TTLS, "w")
    refusals = Refusals(store, ServerClock(connection), Identity("w", "cpu", ("sailq-tiny",)))
    yield JobRunner(connection, engine, scheduler, publisher, store, refusals)
    scheduler.close()
    publisher.close()


@pytest.mark.proof
def test_a_worker_given_a_job_that_it_still_runs_answers_it(
    client: Client, connection: redis.Redis, job_runner: JobRunner, eventually: Eventually
) -> None:
    """As after an outage or a suspended machine: its lease has ended, and nobody else takes the job."""
    job = client.submit_prepared(said("Tell me."), options=ANSWER_OF_960, stream=True).job
    store = JobStore(connection, connection, TTLS, "w")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(job_runner.run, take(store, connection, job))
        eventually(lambda: connection.exists(keys.stream(job)))
        second = threads.submit(job_runner.run, take(store, connection, job))
    assert first.exception() is None and second.exception() is None
    result = client.result(job)
    assert result and result.error is None and result.attempt == 2
