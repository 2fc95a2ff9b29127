"""The messages that systemd gets from a worker, on a socket like those of its services."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import start
from farm import NullWorker
from null_jobs import submit

from sailq.producer.client import Client
from sailq.worker.process import systemd_notifier
from sailq.worker.process.systemd_notifier import SystemdNotifier

StartNull = Callable[..., NullWorker]
Eventually = Callable[..., None]


class Manager:
    """systemd's end of the socket: what it heard, oldest first."""

    def __init__(self, path: Path | str) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self.heard: list[str] = []

    def hear(self, seconds: float) -> list[str]:
        """The messages that arrive from now on, for this time."""
        heard, until = [], time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                heard.append(self._socket.recv(4096).decode())
            except TimeoutError:
                break
        self.heard += heard
        return heard

    def wait_for(self, said: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while said not in self.hear(0.1):
            assert time.monotonic() < until, (said, self.heard)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(folder / "notify.sock")
    yield manager
    manager.close()


@pytest.mark.proof
def test_a_worker_is_ready_when_it_takes_jobs_and_reports_its_state(
    start_null: StartNull, manager: Manager, client: Client
) -> None:
    start_null("--slots", "4", "--decode-ms", "20", ready=False, NOTIFY_SOCKET=manager.address)
    manager.wait_for("READY=1")
    assert manager.heard[0] == "STATUS=loading sailq-tiny"
    for _ in range(3):
        submit(client, 900)
    manager.wait_for("STATUS=3 of 4 slots")
    assert "WATCHDOG=1" in manager.hear(3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_that_is_loading(
    manager: Manager, redis_url: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """In a container the worker is process 1, which a signal ends only if it is handled."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    worker = start("worker", url=redis_url)
    manager.wait_for("STATUS=loading sailq-tiny")
    worker.send_signal(number)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0 and "Traceback" not in errors, errors


def test_a_worker_that_fails_its_self_test_is_never_ready(start_null: StartNull, manager: Manager) -> None:
    worker = start_null("--flaky", ready=False, NOTIFY_SOCKET=manager.address)
    worker.wait_for_end()
    manager.hear(0.1)
    assert "STATUS=loading sailq-tiny" in manager.heard and "READY=1" not in manager.heard


def test_a_hung_device_stops_the_watchdog_signals(start_null: StartNull, manager: Manager, client: Client) -> None:
    """The signals continue until the device timeout, so that the worker itself can report the call that hangs."""
    worker = start_null(
        "--hang-at", "50", "--decode-ms", "5", "--device-timeout", "2", NOTIFY_SOCKET=manager.address
    )
    submit(client, 300)
    worker.wait_for_end()
    assert "has not returned for 2 s" in worker.log.read_text()
    manager.hear(0.1)
    assert "WATCHDOG=1" in manager.heard
    assert manager.hear(1.5) == []


@pytest.mark.parametrize("address", ["", "@sailq-test-{pid}"])
def test_an_abstract_socket_and_no_socket(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(address.format(pid=os.getpid()) or folder / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", address.format(pid=os.getpid()))
    SystemdNotifier().ready()
    assert manager.hear(0.2) == (["READY=1"] if address else [])
    manager.close()


def test_no_watchdog_signal_without_heartbeats(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    told = SystemdNotifier()
    told.alive()
    monkeypatch.setattr(systemd_notifier, "BEAT_LIMIT", 0.05)
    time.sleep(0.06)
    told.alive()
    assert manager.hear(0.2) == ["WATCHDOG=1"]
    told.beat(0, 8)
    told.alive()
    assert manager.hear(0.2) == ["STATUS=0 of 8 slots", "WATCHDOG=1"]


def test_a_manager_that_is_gone_or_does_not_read_blocks_nothing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    told, began = SystemdNotifier(), time.monotonic()
    for _ in range(2000):  # more than a socket's queue takes
        told.alive()
    manager.close()
    told.alive()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("journal", [True, False])
def test_log_lines_have_a_time_unless_they_go_to_the_journal(journal: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        there = os.fstat(output.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino if journal else 1}"}
        program = (
            "from sailq.worker.commands import worker; from sailq.worker.process import watchdog; "
            "worker._log_to_stderr(); watchdog._log.info('here')"
        )
        subprocess.run([sys.executable, "-c", program], stderr=output, env=environment, check=True)
    assert log.read_text().startswith("INFO    sailq.worker: here") is journal
