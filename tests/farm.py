"""Null workers that start at once, so that a test can kill many: see null_farm.py."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NULL_FARM = Path(__file__).with_name("null_farm.py")


class NullWorker:
    """A worker of a farm's. Its pid is nobody else's once it is gone: signals go by a file descriptor."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self._process = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        return not self._ended(0.0)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.wait_for_end()

    def wait_for_end(self, seconds: float = 10.0) -> None:
        assert self._ended(seconds), self.log.read_text()

    def _ended(self, seconds: float) -> bool:
        end = select.poll()  # select.select takes no descriptor above 1023
        end.register(self._process, select.POLLIN)
        return bool(end.poll(1000 * seconds))

    def close(self) -> None:
        self.kill()
        os.close(self._process)


class Farm:
    """Controls a farm process from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(NULL_FARM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )

    def start(self, url: str, log: Path, *arguments: str, **environment: str) -> NullWorker:
        assert self._process.stdin and self._process.stdout
        order = {"arguments": ["--redis-url", url, *arguments], "environment": environment, "log": str(log)}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return NullWorker(int(self._process.stdout.readline()), log)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=20)
