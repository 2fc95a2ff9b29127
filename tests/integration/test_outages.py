"""What a broken connection and a server that goes away do: nothing is lost, doubled or stuck, and no worker ends."""

from __future__ import annotations

import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from rq.job import Job as RQJob
from sailq.producer.client import Client
from sailq.producer.companion import Companion, sailq_command
from sailq.producer.embedded import embedded_server
from sailq.producer.fleet import Fleet
from sailq.producer.messages import Prepared
from sailq.shared import keys
from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.shared.lifecycle import Lifecycle
from sailq.shared.rqjob import LockedJob, Serializer
from sailq.worker.catalog import resolve
from sailq.worker.consumer import Consumer
from sailq.worker.engine import Engine
from sailq.worker.execution import Executor, Identity
from sailq.worker.publisher import Publisher
from sailq.worker.scheduler import Scheduler

QUEUE = keys.queue("sailq-tiny")
ENDLESS = GenerationOptions(max_new_tokens=960, temperature=100.0, seed=1)
Eventually = Callable[..., None]


def said(text: str) -> Prepared:
    return Prepared((Message(role="user", content=(TextPart(text=text),)),), {}, 0)


class Proxy:
    """Stands before a server on a Unix socket, and once breaks the connection instead of giving EXEC's reply."""

    def __init__(self, server: str, path: str) -> None:
        self.lose_reply = threading.Event()
        self._server, self._listener = server, socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        self._open += [client, server]
        with client, server:
            while True:
                readable, _, _ = select.select([client, server], [], [])
                for one in readable:
                    try:
                        data = one.recv(1 << 16)
                    except OSError:
                        return
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
                    if one is client and b"EXEC" in data and self.lose_reply.is_set():
                        server.recv(1 << 16)  # the server has done it
                        self.lose_reply.clear()
                        return

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-"))
    yield folder
    shutil.rmtree(folder)


def test_a_submission_whose_reply_is_lost_is_there_once(
    redis_url: str, server_url: str, connection: redis.Redis, folder: Path
) -> None:
    """The transaction was carried out: done again, the job would wait for itself, as its conversation's last."""
    proxy = Proxy(server_url.removeprefix("unix://"), str(folder / "proxy.sock"))
    with Client(f"unix://{folder}/proxy.sock?db=0") as client:
        for turn in range(3):
            proxy.lose_reply.set()
            assert client.submit_prepared(said("hi"), conversation="c").turn == turn
            assert not proxy.lose_reply.is_set()
    proxy.close()
    first, *others = [key.decode().rpartition(":")[2] for key in sorted(connection.keys(keys.job("*")))]
    assert connection.lrange(f"rq:queue:{QUEUE}", 0, -1) == [first.encode()]
    dependents = [connection.smembers(RQJob.dependents_key_for(job)) for job in (first, *others)]
    assert dependents == [{others[0].encode()}, {others[1].encode()}, set()]


def test_an_outage_ends_no_worker_and_loses_no_job(folder: Path, eventually: Eventually) -> None:
    """It comes while every place is taken, so that the worker meets it in its maintenance and at its jobs' ends."""
    socket_path, log = folder / "s.sock", folder / "worker.log"
    with ExitStack() as stack:
        with embedded_server(unix=socket_path, data=folder / "data") as server:
            url = server.url
            worker = Companion("worker", sailq_command("worker", "--redis-url", url, "--slots", "1"), log)
            stack.callback(worker.stop)
            client = stack.enter_context(Client(url))
            fleet = Fleet(client.connection)
            worker.wait_until(fleet.workers, 90)
            jobs = [client.submit_prepared(said("Tell me."), options=ENDLESS, stream=True).job for _ in range(6)]
            next(client.stream(jobs[0], 30))
        eventually(lambda: log.read_text().count("end could not be recorded") == 3, 30)  # its place and its look-ahead
        worker.check()
        with embedded_server(unix=socket_path, data=folder / "data"):
            for job in jobs:
                result = client.wait(job, 60)
                assert result.error is None and result.finish_reason in {"stop", "length"}
            worker.check()
        assert worker.stop(30) == 0
        assert "Traceback" not in log.read_text().split("stopping:")[1]


@pytest.fixture
def executor(connection: redis.Redis) -> Iterator[Executor]:
    """A worker's inside, without its queue."""
    engine = Engine.load(resolve("sailq-tiny"), slots=2, threads=1)
    scheduler, publisher = Scheduler(engine), Publisher(connection, 60)
    scheduler.start()
    lifecycle = Lifecycle(connection, result_ttl=60, conversation_ttl=60)
    yield Executor(connection, engine, scheduler, publisher, lifecycle, Identity("w", "cpu"), blob_ttl=60)
    scheduler.close()
    publisher.close()


def test_a_worker_given_a_job_that_it_still_runs_answers_it(
    client: Client, executor: Executor, eventually: Eventually
) -> None:
    """As after an outage or a suspended machine: its lease has expired, and nobody else takes the job."""
    job = client.submit_prepared(said("Tell me."), options=ENDLESS).job
    attempts = [threading.Thread(target=executor.run, args=(job,)) for _ in range(2)]
    attempts[0].start()
    eventually(lambda: executor.running() == [job])
    attempts[1].start()
    for attempt in attempts:
        attempt.join(60)
    result = client.result(job)
    assert result and result.error is None and result.attempt == 2
    assert executor.running() == []


def test_a_job_that_could_not_be_started_has_no_lease_renewed(
    client: Client, connection: redis.Redis, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply was lost, so the server has a lease of an execution that will never run."""
    handle = client.submit_prepared(said("hi"))
    consumer = Consumer(QUEUE, executor, connection=connection, name="w", places=1, announce=lambda _: None)
    queue = consumer.queues[0]
    job = LockedJob.fetch(handle.job, connection=connection, serializer=Serializer)
    prepare = consumer.prepare_execution

    def lose_reply(job: RQJob) -> None:
        prepare(job)
        raise redis.ConnectionError("the reply was lost")

    monkeypatch.setattr(consumer, "prepare_execution", lose_reply)
    consumer.execute_job(job, queue)
    assert connection.zcard(f"rq:wip:{QUEUE}") == 1
    assert not consumer.executions
