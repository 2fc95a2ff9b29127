"""Runs `sailq` commands as a script does, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from sailq.producer.companion import sailq_command

SECONDS = 90


def sailq(*arguments: object, stdin: str = "", url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"SAILQ_REDIS_URL": url} if url else {})}
    return subprocess.run(
        sailq_command(*map(str, arguments)), input=stdin, env=environment, capture_output=True, text=True,
        timeout=SECONDS,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that failed with `code`."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line
