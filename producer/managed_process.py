"""Runs a child process: starts it, waits until it is ready, and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.main import USAGE_ERROR

_TAIL_LINES = 8


def sailq_command(*arguments: str) -> list[str]:
    """The command line that runs a `sailq` subcommand with this interpreter."""
    return [sys.executable, "-c", "from sailq.shared.main import main; main()", *arguments]


class ManagedProcess:
    """A child process that writes its output to a file. Ctrl-C does not reach it; its owner must stop it."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment`: variables added to this process's own."""
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], object], seconds: float) -> None:
        """Waits until `ready()` is true.

        Raises SailqError with the end of the log if the process ends or takes too long, and BadRequest if it exits with
        the code of a usage error.
        """
        until = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None:
                kind = BadRequest if self._process.returncode == USAGE_ERROR else SailqError
                raise kind(f"The {self.name} ended at once (exit {self._process.returncode}).{self.tail()}")
            if time.monotonic() > until:
                raise SailqError(f"The {self.name} was not ready after {seconds:.0f} s.{self.tail()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raises SailqError with the end of the log if the process has ended."""
        if self._process.poll() is not None:
            raise SailqError(f"The {self.name} ended (exit {self._process.returncode}).{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log, below a line that names the file."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "".join(f"\n  {line}" for line in [f"The end of {self.log}:", *lines])

    def stop(self, seconds: float = 10.0) -> int:
        """Asks the process to end, and kills it after `seconds`. Returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
