"""The cost of the queue: captions through Redis and RQ, against the same engine called directly."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Bars, Table

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.worker.engine.engine import Engine
from tests.bench.captions import COUNT, THREADS, answer, captions
from tests.bench.turns import RUNS, TURN_SECONDS, Way, runs, spread

SLOTS = 8
LEAST = 0.97
"""Captions/s of the service as a share of the bare engine's: the median of all runs."""
BARE, QUEUED = "bare engine", "through Redis and RQ"


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_service(
    model: Path, start_worker: Callable[..., ManagedProcess], redis_url: str, table: Table, bars: Bars
) -> None:
    """Nothing is cached. The service is the worker and a producer; their server does nothing while these two are
    stopped."""
    worker = start_worker("--model", model, "--slots", SLOTS, "--threads", THREADS, "--vision-cache", 0)
    found = runs({BARE: Way(_call, (model,)), QUEUED: Way(_queue, (redis_url, model.name), helpers=(worker.pid,))})
    rates = {name: [COUNT / run[name].seconds for run in found] for name in (BARE, QUEUED)}
    shares = [queued / bare for queued, bare in zip(rates[QUEUED], rates[BARE], strict=True)]
    said = {BARE: ("1", ""), QUEUED: (spread(shares, ".3f"), f"≥ {LEAST}")}
    table(
        f"{COUNT} captions, {SLOTS} slots, {THREADS} threads, median (min–max) of {RUNS} runs, by turns of "
        f"{TURN_SECONDS:g} s",
        ("way", "captions/s", "share", "bound"),
        [(name, spread(rates[name], ".3f"), *said[name]) for name in rates],
    )
    print(f"figure: captions/s through Redis and RQ as a share of the bare engine's: {spread(shares, '.3f')}")
    bars("What the queue costs", "captions/s", {name: statistics.median(found) for name, found in rates.items()})
    assert statistics.median(shares) >= LEAST


def _call(model: Path) -> Callable[[int], object]:
    engine = Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)
    work = captions()
    answer(engine, work[:SLOTS])  # what is loaded or allocated once
    return lambda run: answer(engine, work)


def _queue(redis_url: str, model: str) -> Callable[[int], object]:
    work = captions()
    jobs = [(one.prepared, one.options) for one in work]
    client = Client(redis_url)

    def ask(count: int) -> None:
        handles = [client.submit_prepared(job, model=model, options=options) for job, options in jobs[:count]]
        for handle, one in zip(handles, work, strict=False):
            result = client.wait(handle.job, 600)
            assert result.error is None and result.usage.completion_tokens == one.tokens

    ask(SLOTS)  # what is loaded or allocated once
    return lambda run: ask(COUNT)
