"""A server that is killed, restarts, is full, read-only or loading: acknowledged data are kept, and no worker exits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farm import NullWorker
from null_jobs import assert_once, submit
from own_server import OwnServer

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.shared import keys
from sailq.shared.connection import connect, server_errors
from sailq.shared.errors import ServerUnavailable

Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


@pytest.fixture
def always(folder: Path) -> Iterator[OwnServer]:
    """A server that writes each change to the disk before it answers."""
    with OwnServer(folder, always=True) as server:
        yield server


class Producer(threading.Thread):
    """Submits until it is told to stop, whatever the server does; `jobs`: those whose submission was answered."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__()
        self.jobs: list[str] = []
        self.unanswered = 0
        self.enough = threading.Event()
        self._url, self._tokens = url, tokens

    def run(self) -> None:
        with Client(self._url) as client:
            while not self.enough.wait(0.02):
                try:
                    self.jobs.append(submit(client, self._tokens, f"c-{len(self.jobs) % 20}"))
                except ServerUnavailable:
                    self.unanswered += 1


@pytest.mark.proof
def test_5_kills_of_the_server_lose_and_duplicate_no_job(
    always: OwnServer, start_null: Start, eventually: Eventually
) -> None:
    connection = always.start()
    workers = [start_null("--decode-ms", "10", url=always.url) for _ in range(2)]
    producer = Producer(always.url, 20)
    producer.start()
    began = time.monotonic()
    for kill in range(5):
        eventually(lambda: len(connection.keys(keys.result("*"))) >= 60 * (kill + 1))  # noqa: B023
        always.kill()
        connection = always.start()
    producer.enough.set()
    producer.join()
    with Client(always.url) as client:
        eventually(lambda: not client.connection.keys(keys.job("*")))
        lost = [job for job in producer.jobs if not client.connection.exists(keys.result(job))]
        results = client.connection.keys(keys.result("*"))
        print(f"\nfigure: the server killed 5 times in {time.monotonic() - began:.0f} s: {len(producer.jobs)} jobs "
              f"accepted, {len(lost)} lost")
        for key in results:
            result = client.result(key.decode().rpartition(":")[2])
            assert result and result.error is None and result.usage.completion_tokens == 20, result
        turns = [turn.job for number in range(20) for turn in client.history(f"c-{number}")]
        assert not lost and len(turns) == len(set(turns)) == len(results) >= len(producer.jobs)
        assert len(results) - len(producer.jobs) <= producer.unanswered
    assert all(worker.alive for worker in workers)


def test_a_data_folder_keeps_waiting_running_and_finished_jobs_and_conversations(
    folder: Path, start_null: Start, eventually: Eventually
) -> None:
    """`sailq server --data DIR`, ended by a signal and started again."""
    socket, url = folder / "server.sock", f"unix://{folder}/server.sock"

    def start_server(log: str) -> ManagedProcess:
        command = sailq_command("server", "--unix", str(socket), "--data", str(folder / "data"))
        server = ManagedProcess("server", command, folder / log)
        server.wait_until(lambda: "SAILQ_REDIS_URL" in server.log.read_text(), 30)
        return server

    server = start_server("1.log")
    try:
        with Client(url) as client:
            start_null("--slots", "1", "--decode-ms", "20", url=url)
            finished = submit(client, 5, "c")
            before = client.wait(finished, 60)
            running, waiting = submit(client, 200, "c"), submit(client, 5, "c")
            next(client.stream(running, 60))
            history = client.history("c")
            assert server.stop() == 0
            server = start_server("2.log")
            assert client.result(finished) == before and client.history("c") == history
            assert client.conversations() == ["c"]
            assert client.result(running) is None and client.result(waiting) is None
            results = [client.wait(job, 60) for job in (running, waiting)]
            assert [turn.job for turn in client.history("c")] == [finished, running, waiting]
            assert [result.error for result in results] == [None, None]
    finally:
        server.stop()


FULL = ["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"]
READ_ONLY = ["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]
CUT_OFF = ["CONFIG SET replica-serve-stale-data no", *READ_ONLY[0]], READ_ONLY[1]


@pytest.mark.parametrize(("fault", "said"), [
    pytest.param(FULL, "is full", id="full"),
    pytest.param(READ_ONLY, "is a read-only replica", marks=pytest.mark.proof, id="read-only"),
    pytest.param(CUT_OFF, "is a read-only replica", marks=pytest.mark.proof, id="cut-off"),
])
def test_a_server_that_refuses_writes_loses_no_job_and_ends_no_worker(
    folder: Path, start_null: Start, eventually: Eventually, fault: tuple[list[str], list[str]], said: str
) -> None:
    """Full, a replica after a failover, a replica without a primary: it is so when the answers come."""
    with OwnServer(folder) as server:
        connection = server.start()
        worker = start_null("--decode-ms", "10", "--slots", "4", url=server.url)
        with Client(server.url) as client:
            jobs = [submit(client, 200) for _ in range(4)]
            eventually(lambda: all(connection.exists(keys.stream(job)) for job in jobs))
            worker.signal(signal.SIGSTOP)  # so that none ends before the fault
            jobs += [submit(client, 200) for _ in range(4)]
            for command in fault[0]:
                connection.execute_command(command)
            with pytest.raises(ServerUnavailable, match=rf"^The server at \S+ {said}.*\.$"):
                submit(client, 5)
            worker.signal(signal.SIGCONT)
            kept = "its result is kept"
            if fault is FULL:  # a full server has room for the ends of existing jobs, and notifies waiting clients
                with Client(server.url) as another:
                    assert_once(another, jobs, 200, 60)
                assert_once(client, jobs, 200, 60)
                assert ["".join(chunk.text for chunk in client.stream(job)) for job in jobs] == [
                    client.result(job).text for job in jobs]
            else:
                eventually(lambda: all(f"{job}: {kept}" in worker.log.read_text() for job in jobs[:4]))
            for command in fault[1]:
                connection.execute_command(command)
            back = time.monotonic()
            results = assert_once(client, jobs, 200, 60)
            anew = sum(result.attempt > 1 for result in results)
            print(f"\nfigure: a server that {said}: {len(results)} results of {len(jobs)} jobs within "
                  f"{time.monotonic() - back:.1f} s of its recovery, {anew} made anew")
            assert anew < 4  # the results of this time were kept
            assert worker.alive


def test_a_worker_starts_on_a_full_server_and_ends_its_jobs(folder: Path, start_null: Start) -> None:
    """All workers may restart while it is full."""
    with OwnServer(folder) as server:
        connection = server.start()
        with Client(server.url) as client:
            jobs = [submit(client, 5) for _ in range(4)]
            connection.execute_command(*FULL[0][0].split())
            start_null(url=server.url)
            assert_once(client, jobs, 5, 60)
            assert [card.name for card in client.models()] == ["sailq-tiny"]


def test_workers_wait_for_a_server_that_is_loading(folder: Path, start_null: Start, eventually: Eventually) -> None:
    with OwnServer(folder) as server:
        connection = server.start()
        worker = start_null("--decode-ms", "10", url=server.url)
        with Client(server.url) as client:
            jobs = [submit(client, 100)]
            with connection.pipeline(transaction=False) as pipeline:
                for number in range(3000):
                    pipeline.set("filler", number)
                pipeline.execute()
            server.kill()
            server.start_slowly(1)
            connection = connect(server.url, retries=0)

            def says_that_it_loads() -> bool:
                try:
                    with server_errors(connection):
                        connection.ping()
                except ServerUnavailable as error:
                    return "is still loading its data" in str(error)
                return False

            eventually(says_that_it_loads)
            assert_once(client, jobs, 100, 60)
            assert worker.alive
