"""Runs `sailq` commands as a script does: in this process, or, a second slower, each as a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sailq.producer.managed_process import sailq_command
from sailq.shared.errors import SailqError
from sailq.shared.main import main

SECONDS = 90
USAGE_ERRORS = {"bad_request", "unsupported"}
"""Codes of the errors that end a command with exit code 2; all others end it with 1."""


@dataclass(frozen=True)
class Done:
    """A command that has ended. `error`: the error of sailq's own that ended it."""

    returncode: int
    stdout: str
    stderr: str
    error: SailqError | None


def invoke(*arguments: object, stdin: str = "", url: str = "") -> Done:
    """Runs a command in this process, with streams of its own; what it changes of the process is undone.

    An error that is not sailq's own is raised here. What a library written in C prints is not in `stderr`.
    """
    environment = {"COLUMNS": "80", **({"SAILQ_REDIS_URL": url} if url else {})}
    with _restored(), CliRunner().isolation(input=stdin, env=environment) as (stdout, stderr, _):
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            assert end.code is None or isinstance(end.code, int), end.code
            code, error = end.code or 0, end.__context__
        sys.stdout.flush()
        sys.stderr.flush()
        said = [stream.getvalue().decode(errors="replace") for stream in (stdout, stderr)]
    return Done(code, *said, error if isinstance(error, SailqError) else None)


@contextmanager
def _restored() -> Iterator[None]:
    """Gives the process back its signal handlers, loggers and thread switch interval. Until then its root logger has
    no handler, as in a process that begins."""
    interval = sys.getswitchinterval()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    loggers = [logging.getLogger(name) for name in ("", "sailq", "rq.worker")]
    before = [(logger.level, logger.handlers, logger.filters) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.filters = [], []
    try:
        yield
    finally:
        for logger, (level, logger.handlers, logger.filters) in zip(loggers, before, strict=True):
            logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.setswitchinterval(interval)


def refused(done: Done, code: str, *names: object) -> None:
    """Checks how a command failed: with an error of this code and the exit code that goes with it, and with one line
    on stderr, in which are these names of files, options and values."""
    assert done.error is not None, done
    assert (done.error.code, done.returncode) == (code, 2 if code in USAGE_ERRORS else 1), done
    assert done.stderr == f"sailq: {done.error}\n" and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(str(name) in done.stderr for name in names), done.stderr


def command_without(packages: Sequence[str], *arguments: str) -> list[str]:
    """The command line of a `sailq` that cannot import these packages."""
    python, option, program, *rest = sailq_command(*arguments)
    return [python, option, f"import sys; sys.modules.update(dict.fromkeys({[*packages]})); {program}", *rest]


def sailq(*arguments: object, stdin: str = "", url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"SAILQ_REDIS_URL": url} if url else {})}
    return subprocess.run(
        sailq_command(*map(str, arguments)), input=stdin, env=environment, capture_output=True, text=True,
        timeout=SECONDS,
    )


def start(*arguments: object, url: str = "", stdin: int | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **({"SAILQ_REDIS_URL": url} if url else {})}
    return subprocess.Popen(
        sailq_command(*map(str, arguments)), env=environment, stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(done: Done | subprocess.CompletedProcess[str], code: int) -> str:
    """The single line that a command which failed with `code` wrote to stderr."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def living(marker: str) -> list[str]:
    """Command lines of processes that name `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def sockets(log: str) -> str:
    """The folder of the embedded server that a command's stderr names."""
    return log.split("server at unix://")[1].split("/redis.sock")[0]
