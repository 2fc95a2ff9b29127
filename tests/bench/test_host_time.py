"""What the host costs at each step: a real worker, queue and streams, on a runner that computes nothing.

Once it answers at once, so that all there is is the host's, unwatched and while Prometheus asks every 0.1 s, 150 times
as often as deploy/prometheus says; once it takes a BM1684X's time (worker/planning), while jobs of 200 KB wait in the
queue.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Table
from scraping import free_port, scrape

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.workers import live_workers
from sailq.worker.planning.timings import RECORDED, Timings
from tests.bench.turns import RUNS, spread

SLOTS = 8
MOST_MILLISECONDS = 1.0
"""The host's median time at a decode step of 8 slots, streaming."""
FILLING_MS = 20
"""Of an answer of 1,500 tokens, 30 s: no machine takes as long to claim a job for each slot."""
SCRAPE_SECONDS = 0.1
START_SECONDS = 300
MOST_IDLE = 0.02
"""Share of the wall time in which the device waits for the host."""
PATCHES, PROMPT, CONTEXT, ANSWER = 160, 80, 512, 60
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"

ENDED, SECONDS, DEVICE, RUNNING, PREFILLS = range(5)
"""Columns of a null worker's record."""


@pytest.mark.bench
@pytest.mark.timeout(900)
def test_the_hosts_time_at_a_step(redis_url: str, client: Client, tmp_path: Path, table: Table) -> None:
    """While a slot is free a step takes FILLING_MS, so that all slots are taken together however slowly this machine
    claims jobs. Only steps with all slots taken count, and these the runner answers at once."""
    jobs = [Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)] * 4 * SLOTS
    found: dict[str, list[np.ndarray[Any, Any]]] = {"unwatched": [], "scraped": []}
    for _ in range(RUNS):
        for name, milliseconds in found.items():
            with _scraped() if name == "scraped" else nullcontext([]) as scrapes:
                steps = _steps(redis_url, client, tmp_path, jobs, 1500, "--filling-ms", f"{FILLING_MS}")
            full = steps[(steps[:, RUNNING] == SLOTS) & (steps[:, PREFILLS] == 0)]
            assert len(full) > 1000, f"only {len(full)} of {len(steps)} steps had all {SLOTS} slots taken"
            milliseconds.append(1000 * (full[:, SECONDS] - full[:, DEVICE]))
            if name == "scraped":
                assert any(full[0, ENDED] < at < full[-1, ENDED] for at in scrapes), "no scrape fell among these steps"
    measures = {"median": np.median, "99 %": partial(np.percentile, q=99), "mean": np.mean}
    table(
        f"The host's time at a decode step of {SLOTS} slots, all streaming, on a null runner, median (min–max) of "
        f"{RUNS} runs of {len(found['unwatched'][0])} steps",
        ("ms", "unwatched", f"scraped every {SCRAPE_SECONDS:g} s", "bound"),
        [(name, *(spread([float(measure(run)) for run in each], ".3f") for each in found.values()),
          f"≤ {MOST_MILLISECONDS}" if name == "median" else "") for name, measure in measures.items()],
    )
    medians = {name: [float(np.median(run)) for run in each] for name, each in found.items()}
    for name, each in medians.items():
        print(f"figure: the host's time at a decode step of {SLOTS} slots, {name}: {spread(each, '.3f')} ms")
    assert {name: np.median(each) <= MOST_MILLISECONDS for name, each in medians.items()} == dict.fromkeys(found, True)


@contextmanager
def _scraped() -> Iterator[list[float]]:
    """Workers that start meanwhile show their metrics, and somebody asks for them again and again; yields when, on
    `time.monotonic`."""
    port, over, scrapes = free_port(), threading.Event(), list[float]()

    def ask() -> None:
        while not over.wait(SCRAPE_SECONDS):
            with suppress(OSError):  # the thread has not started, or has ended
                scrape(port)
                scrapes.append(time.monotonic())

    asking = threading.Thread(target=ask)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SAILQ_METRICS_PORT", str(port))
        environment.setenv("SAILQ_METRICS_ADDRESS", "127.0.0.1")
        asking.start()
        try:
            yield scrapes
        finally:
            over.set()
            asking.join()


@pytest.mark.bench
@pytest.mark.timeout(900)
def test_the_device_never_waits_for_the_host(redis_url: str, client: Client, tmp_path: Path, table: Table) -> None:
    timings = Timings.load(RECORDED / "qwen2-vl-7b.json")
    first = timings.time("vit", PATCHES, quantize="w8f16") + timings.prefill(PROMPT, SLOTS)
    step = timings.step(SLOTS, CONTEXT)
    random = np.random.default_rng(0)
    idle, running, walls, sizes = [], [], [], []
    for _ in range(RUNS):
        jobs = [_of_200_kilobytes(random) for _ in range(3 * SLOTS)]
        sizes += [len(blob) for job in jobs for blob in job.blobs.values()]
        steps = _steps(
            redis_url, client, tmp_path, jobs, ANSWER, "--prefill-ms", f"{first}", "--decode-ms", f"{step}"
        )
        # From the first step with all slots taken to the last: before it the queue fills, after it there is no work.
        begin, end = np.flatnonzero(steps[:, RUNNING] == SLOTS)[[0, -1]]
        steady = steps[begin + 1 : end + 1]
        walls.append(steps[end, ENDED] - steps[begin, ENDED])
        idle.append(float(1 - steady[:, DEVICE].sum() / walls[-1]))
        running.append(float(steady[:, RUNNING].mean()))
    assert 190_000 < np.mean(sizes) < 230_000
    table(
        f"A worker with {SLOTS} slots on a null runner that takes a BM1684X's time by the compiler's estimate "
        f"({first:.0f} ms a first token, {step:.0f} ms a step), jobs of {np.mean(sizes) / 1000:.0f} KB, "
        f"median (min–max) of {RUNS} runs of {np.mean(walls):.0f} s",
        ("", "", "bound"),
        [("device idle", spread(idle, ".2%"), f"≤ {MOST_IDLE:.0%}"),
         (f"slots taken, mean, of {SLOTS}", spread(running), "")],
    )
    print(f"figure: device idle, on a runner that takes a BM1684X's time: {spread(idle, '.2%')}")
    assert np.median(idle) <= MOST_IDLE


def _steps(
    url: str, client: Client, folder: Path, jobs: Sequence[Prepared], tokens: int, *timing: str
) -> np.ndarray[Any, Any]:
    """The record of a null worker that answered these jobs, streaming, with so many tokens each."""
    record = folder / "steps.npy"
    with _null_worker(url, client, folder, "--record", str(record), *timing):
        options = GenerationOptions(max_new_tokens=tokens)
        handles = [client.submit_prepared(job, options=options, stream=True) for job in jobs]
        for handle in handles:
            result = client.wait(handle.job, 600)
            assert result.error is None and result.usage.completion_tokens == tokens
    steps: np.ndarray[Any, Any] = np.load(record)
    return steps


@contextmanager
def _null_worker(url: str, client: Client, folder: Path, *arguments: str) -> Iterator[ManagedProcess]:
    command = [sys.executable, str(NULL_WORKER), "--redis-url", url, "--slots", str(SLOTS), *arguments]
    worker = ManagedProcess("null worker", command, folder / "worker.log")
    try:
        worker.wait_until(lambda: live_workers(client.connection), START_SECONDS)
        yield worker
        assert worker.stop(30) == 0, worker.tail()
    finally:
        worker.stop()


def _of_200_kilobytes(random: np.random.Generator) -> Prepared:
    """A job with a clip of 4 frames of 420 × 616 that no other job has."""
    frames = random.integers(0, 15, (4, 420, 616, 3), np.uint8)
    digest, blob = encode_frames(frames)
    part = FramesPart(type="video", blob=digest, frames=4, height=420, width=616)
    return Prepared((Message(role="user", content=(part, TextPart(text="请描述视频中的内容"))),), {digest: blob}, 0)
