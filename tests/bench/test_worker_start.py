"""The time from a worker's start until it takes jobs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sailq.producer.managed_process import ManagedProcess
from tests.bench.turns import RUNS, spread

MOST_SECONDS = 1.5
"""Of CPU time from the process's start to its registration, sailq-tiny's loading included: on an idle machine the wall
time, on a busy one still the same."""


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_a_worker_starts_quickly(start_worker: Callable[..., ManagedProcess]) -> None:
    walls, busy = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        worker = start_worker(seconds=300)
        walls.append(time.monotonic() - began)
        user, system = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        busy.append((int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
        worker.stop()
    print(f"figure: from a worker's start to its first poll, with sailq-tiny: {spread(busy)} s of CPU time, "
          f"{spread(walls)} s of wall time")
    assert statistics.median(busy) <= MOST_SECONDS
