"""What a broken connection and a server that goes away do: nothing is lost, doubled or stuck, and no worker ends."""

from __future__ import annotations

import os
import select
import shutil
import signal
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
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.stop(30) == 0
        assert "Traceback" not in log.read_text().split("stopping:")[1]
