"""Starts what a demonstration or a measurement needs: an embedded server, unless one is given, and a worker."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from sailq.shared.connection import connect
from sailq.shared.errors import SailqError
from sailq.shared.workers import live_workers

from .archive.store import files_of
from .managed_process import ManagedProcess, sailq_command

_SERVER_SECONDS = 20.0
_WORKER_SECONDS = 180.0
_GATEWAY_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """The server's URL and the processes that were started, in the order in which they were started."""

    redis_url: str
    started: list[ManagedProcess]

    @property
    def worker(self) -> ManagedProcess:
        return self.started[-1]


def set_up(
    stack: ExitStack,
    *,
    redis_url: str | None,
    model: str,
    logs: Path,
    say: Callable[[str], None],
    worker_options: Sequence[str] = (),
) -> Service:
    """Starts the missing processes. Closing `stack` stops them, the worker first.

    Args:
        redis_url: the user's server, or None for an embedded one.
        logs: folder for `server.log` and `worker.log`.
        worker_options: further arguments of `sailq worker`.

    Raises SailqError if a process does not get ready, with the last lines of its log.
    """
    started: list[ManagedProcess] = []
    if redis_url is None:
        folder = Path(tempfile.mkdtemp(prefix="sailq-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis_url = f"unix://{folder}/redis.sock"
        command = sailq_command("server", "--unix", f"{folder}/redis.sock")
        started.append(_start(stack, "server", command, logs))
        started[-1].wait_until(lambda: _answers(redis_url), _SERVER_SECONDS)
        say(f"server at {redis_url}")
    with connect(redis_url) as connection:
        live_workers(connection)  # fails before a worker is started if the server does not answer
        command = sailq_command("worker", "--model", model, *worker_options)
        # All users of this machine can read command lines, and the URL may contain a password.
        worker = _start(stack, "worker", command, logs, {"SAILQ_REDIS_URL": redis_url})
        started.append(worker)
        worker.wait_until(lambda: worker.pid in {one.pid for one in live_workers(connection)}, _WORKER_SECONDS)
        mine = next(one for one in live_workers(connection) if one.pid == worker.pid)
        say(f"worker with {mine.model} on {mine.device}, {mine.slots} answers at a time")
    return Service(redis_url, started)


@dataclass(frozen=True)
class DemoPage:
    """A gateway with an archive, and the page's address."""

    gateway: ManagedProcess
    address: str

    def wait(self) -> None:
        """Waits until it ends. Raises SailqError then."""
        while True:
            self.gateway.check()
            time.sleep(1.0)


def start_page(stack: ExitStack, redis_url: str, folder: Path) -> DemoPage:
    """Starts a gateway with an archive, on a free port. Closing `stack` stops it.

    `folder`: for `page.log` and the archive, `demo-page.db`, which is begun anew.

    Raises SailqError if it does not get ready.
    """
    archive = folder / "demo-page.db"
    for file in files_of(archive):
        file.unlink(missing_ok=True)
    command = sailq_command("gateway", "--port", "0", "--archive", str(archive))
    gateway = _start(stack, "page", command, folder, {"SAILQ_REDIS_URL": redis_url})
    gateway.wait_until(lambda: "startup complete" in gateway.log.read_text(), _GATEWAY_SECONDS)
    found = re.search(r"the page is at (\S+)", gateway.log.read_text())
    assert found is not None
    return DemoPage(gateway, found[1])


def _start(
    stack: ExitStack, name: str, command: list[str], logs: Path, environment: Mapping[str, str] | None = None
) -> ManagedProcess:
    process = ManagedProcess(name, command, logs / f"{name}.log", environment)
    stack.callback(process.stop)
    return process


def _answers(url: str) -> bool:
    try:
        with connect(url, retries=0) as connection:
            return bool(connection.ping())
    except (redis.RedisError, SailqError):
        return False
