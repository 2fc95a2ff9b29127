"""A real server for the whole run, empty for each test, and a real worker for the tests that ask for one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from answering import Answerer
from farm import Farm, NullWorker
from gateways import Gateway, gateway

from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.shared.connection import connect
from sailq.shared.settings import Settings
from sailq.shared.workers import live_workers

HOOKS = Path(__file__).with_name("hooks")
WORKER_START_SECONDS = 90.0

# A shell without job control ignores SIGINT in background processes, nohup ignores SIGHUP, and children inherit both.
# The tests of Ctrl-C and of a closed terminal need the default actions.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# `make test` runs two test processes on two cores. More threads of PyTorch or BLAS would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def thread_errors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that gets the traceback of each thread that dies in a process that a test starts.

    It is set up before the processes that serve all tests and checked after their end, which fails the last test.
    """
    reports = tmp_path_factory.mktemp("threads") / "errors"
    reports.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_THREAD_ERRORS", str(reports))
        patch.setenv("PYTHONPATH", str(HOOKS), prepend=os.pathsep)
        yield reports
    errors = reports.read_text()
    assert not errors, errors


@pytest.fixture(autouse=True)
def no_thread_dies(thread_errors: Path) -> Iterator[None]:
    """Fails the test when an exception ends a thread of a process that it started. pytest itself does so for the
    threads of this process (`filterwarnings` in pyproject.toml)."""
    yield
    errors = thread_errors.read_text()
    thread_errors.write_text("")
    assert not errors, errors


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of this run's own server: no port, so that runs beside each other never meet."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-"))
    try:
        with embedded_server(unix=folder / "server.sock") as server:
            yield server.url
    finally:
        shutil.rmtree(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests printed, together at the end."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for line in report.capstdout.splitlines():
                if line.startswith("figure:"):
                    terminalreporter.write_line(line)


@pytest.fixture
def redis_url(server_url: str) -> str:
    """The URL of an empty database."""
    url = f"{server_url}?db=0"
    with connect(url) as connection:
        connection.flushdb()
    return url


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the caller's settings from the environment."""
    for name in [name for name in os.environ if name.startswith("SAILQ_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    """A connection of the test's own."""
    with connect(redis_url) as connection:
        yield connection


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def start_worker(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., ManagedProcess]]:
    """Starts `sailq worker` processes. Each has announced itself when the call returns, within `seconds`; all end with
    the test."""
    with ExitStack() as stack:
        count = itertools.count()

        def start(*arguments: object, seconds: float = WORKER_START_SECONDS) -> ManagedProcess:
            return _worker(stack, redis_url, tmp_path / f"worker-{next(count)}.log", *arguments, seconds=seconds)

        yield start


@pytest.fixture
def worker(start_worker: Callable[..., ManagedProcess]) -> ManagedProcess:
    """A worker of the test's own, with sailq-tiny, on `redis_url`."""
    return start_worker()


@pytest.fixture(scope="session")
def common_worker(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the database of one worker, for all tests that only need answers. The database is never emptied."""
    url = f"{server_url}?db=1"
    with ExitStack() as stack:
        _worker(stack, url, tmp_path_factory.mktemp("worker") / "worker.log")
        yield url


@pytest.fixture
def served_url(common_worker: str) -> str:
    """The URL of a database that a worker with sailq-tiny serves."""
    return common_worker


@pytest.fixture(scope="session")
def common_gateway(common_worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without keys in front of the common worker, for all tests that only need answers."""
    with gateway(common_worker, tmp_path_factory.mktemp("gateway") / "gateway.log") as running:
        yield running


def _worker(
    stack: ExitStack, url: str, log: Path, *arguments: object, seconds: float = WORKER_START_SECONDS
) -> ManagedProcess:
    command = sailq_command("worker", "--redis-url", url, "--threads", "1", *map(str, arguments))
    worker = ManagedProcess("worker", command, log)
    stack.callback(worker.stop)
    with connect(url) as connection:
        worker.wait_until(lambda: worker.pid in {info.pid for info in live_workers(connection)}, seconds)
    return worker


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    with Farm() as farm:
        yield farm


@pytest.fixture
def start_null(farm: Farm, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., NullWorker]]:
    """Starts null workers quickly. `ready`: wait until it has announced itself. They are killed with the test."""
    workers: list[NullWorker] = []

    def start(*arguments: str, url: str = redis_url, ready: bool = True, **environment: str) -> NullWorker:
        worker = farm.start(url, tmp_path / f"null-worker-{len(workers)}.log", *arguments, **environment)
        workers.append(worker)
        if ready:
            with connect(url) as connection:
                until = time.monotonic() + WORKER_START_SECONDS
                while worker.pid not in {info.pid for info in live_workers(connection)}:
                    assert worker.alive and time.monotonic() < until, worker.log.read_text()
                    time.sleep(0.02)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def answerer(connection: redis.Redis) -> Answerer:
    """Plays the worker on `redis_url`."""
    return Answerer(connection)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds; fails the test when it does not within `seconds`."""

    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                pytest.fail(f"not within {seconds:g} s")
            time.sleep(0.02)

    return wait


@pytest.fixture
def later(connection: redis.Redis) -> Iterator[Callable[..., None]]:
    """Calls a function 0.2 s later on a thread, which ends before the test's connection is closed."""
    timers: list[threading.Timer] = []

    def start(call: Callable[..., object], *arguments: object) -> None:
        timers.append(threading.Timer(0.2, call, arguments))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()
