"""Forks null workers from a process that has loaded everything.

    python tests/null_farm.py

Each line of its input is JSON, a worker's `arguments` (see null_worker.py), `environment` and `log`, and is answered
with its pid. The workers that still live end with the input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress

import null_worker

from sailq.shared.errors import SailqError
from sailq.worker.model_files.model_paths import resolve


def main() -> None:
    null_worker.loaded(resolve("sailq-tiny"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    pids = []
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(**order)
        pids.append(pid)
        print(pid, flush=True)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _work(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Never returns: what lies below the fork on the stack is the farm's."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment)
        null_worker.main(arguments)
        code = 0
    except SailqError as error:
        print(error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
