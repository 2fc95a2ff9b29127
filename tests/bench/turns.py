"""Several ways of doing the same, side by side, on a machine whose speed changes by the minute.

Each way is one or more processes. They run by turns, one way at a time, the other ways' processes stopped, so that all
meet the same machine. What a way takes is the time of its own turns.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

RUNS = 3
"""A benchmark states the median of so many runs, and their spread."""
TURN_SECONDS = 1.0
"""Shorter than a worker may go without renewing its leases."""


@dataclass(frozen=True)
class Way:
    """One way of doing the work.

    Attributes:
        prepare: called in a process of its own, with `arguments`. It loads what the way needs and returns a function
            that does one run: it takes the run's number, from 0, and returns what came out.
        helpers: other processes that work for this way alone.
    """

    prepare: Callable[..., Callable[[int], Any]]
    arguments: tuple[Any, ...]
    helpers: Sequence[int] = ()


@dataclass(frozen=True)
class Run:
    """What one way did in one run. `seconds`: of its own turns. `made`: what its function returned."""

    seconds: float
    made: Any


def runs(ways: Mapping[str, Way], count: int = RUNS) -> list[dict[str, Run]]:
    """Each run of all ways, by turns. A run ends when all its ways have ended; then the next one begins."""
    spawn = multiprocessing.get_context("spawn")
    links: dict[str, Connection] = {}
    processes = {}
    try:
        for name, way in ways.items():
            links[name], theirs = spawn.Pipe()
            processes[name] = spawn.Process(target=_serve, args=(way.prepare, way.arguments, theirs), daemon=True)
            processes[name].start()
            theirs.close()
        for name, link in links.items():
            assert _receive(link, name) == "ready"
        pids = {name: [pid for pid in (processes[name].pid, *ways[name].helpers) if pid] for name in ways}
        return [_one_run(number, links, Turns(pids)) for number in range(count)]
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _one_run(number: int, links: Mapping[str, Connection], turns: Turns) -> dict[str, Run]:
    ended: dict[str, tuple[float, float, Any]] = {}

    def begin() -> None:
        for link in links.values():
            link.send(number)

    def unfinished() -> list[str]:
        for name, link in links.items():
            if name not in ended and link.poll():
                ended[name] = _receive(link, name)
        return [name for name in links if name not in ended]

    turns.run_while(begin, unfinished)
    return {name: Run(turns.seconds(name, began, to), made) for name, (began, to, made) in ended.items()}


def _serve(prepare: Callable[..., Callable[[int], Any]], arguments: tuple[Any, ...], link: Connection) -> None:
    """A way's process: `(began, ended, made)` of each run that is asked for, in seconds of `time.monotonic`."""
    run = prepare(*arguments)
    link.send("ready")
    while True:
        number = link.recv()
        began = time.monotonic()
        made = run(number)
        link.send((began, time.monotonic(), made))


def _receive(link: Connection, name: str) -> Any:
    try:
        return link.recv()
    except EOFError:
        raise AssertionError(f"{name}: its process has ended; its traceback is on stderr") from None


@dataclass
class Turns:
    """`taken`: each way's turns, from and to, in seconds of `time.monotonic`, which is one clock for all processes."""

    ways: Mapping[str, Sequence[int]]
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def run_while(self, begin: Callable[[], None], unfinished: Callable[[], Collection[str]]) -> None:
        """Stops all processes, calls `begin`, and gives turns to the `unfinished` ways until there are none; then all
        processes go on."""
        for pids in self.ways.values():
            _signal(pids, signal.SIGSTOP)
        try:
            begin()
            while names := unfinished():
                for name in names:
                    _signal(self.ways[name], signal.SIGCONT)
                    began = time.monotonic()
                    time.sleep(TURN_SECONDS)
                    _signal(self.ways[name], signal.SIGSTOP)
                    self.taken[name].append((began, time.monotonic()))
        finally:
            for pids in self.ways.values():
                _signal(pids, signal.SIGCONT)

    def seconds(self, name: str, began: float, ended: float) -> float:
        """What of this time was in the way's turns."""
        return sum(max(0.0, min(ended, to) - max(began, since)) for since, to in self.taken[name])


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`median (min–max of 3)`."""
    middle, least, most = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}–{most} of {len(values)})"


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # whoever waits for this process reports its end; the others continue
            os.kill(pid, number)
