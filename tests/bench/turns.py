"""Two ways of doing the same, side by side, on a machine whose speed changes by the minute.

Each way is some processes. They run by turns, one way at a time, the other's processes stopped, so that both meet the
same machine; what a way takes is the time of its own turns.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

TURN_SECONDS = 1.0
"""Shorter than a worker may go without renewing its leases."""


@dataclass
class Turns:
    """`taken`: each way's turns, from and to, in seconds of `time.monotonic`, which is one clock for all processes."""

    ways: Mapping[str, Sequence[int]]
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def run_until(self, done: Callable[[], bool]) -> None:
        """Turns until `done`, which is asked after each; then all processes go on."""
        for pids in self.ways.values():
            _signal(pids, signal.SIGSTOP)
        try:
            while not done():
                for name, pids in self.ways.items():
                    _signal(pids, signal.SIGCONT)
                    began = time.monotonic()
                    time.sleep(TURN_SECONDS)
                    _signal(pids, signal.SIGSTOP)
                    self.taken[name].append((began, time.monotonic()))
        finally:
            for pids in self.ways.values():
                _signal(pids, signal.SIGCONT)

    def seconds(self, name: str, began: float, ended: float) -> float:
        """What of this time was in the way's turns."""
        return sum(max(0.0, min(ended, to) - max(began, since)) for since, to in self.taken[name])


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # `done` says what has ended; the others go on
            os.kill(pid, number)
