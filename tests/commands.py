"""Runs `sailq` commands as a script does, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sailq.producer.companion import sailq_command

SECONDS = 90


def command_without(packages: Sequence[str], *arguments: str) -> list[str]:
    """The command line of a `sailq` to which these packages are not installed."""
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


def told(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that failed with `code`."""
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
