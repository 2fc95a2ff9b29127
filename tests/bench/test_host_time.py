"""What the host costs at each step: a real worker, queue and streams, on a runner that computes nothing.

Once it answers at once, so that all there is is the host's, unwatched and while Prometheus asks every second, 15 times
as often as deploy/prometheus says; once it takes a BM1684X's time (timings.py), while jobs of 200 KB wait in the queue.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Table
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.producer.fleet import Fleet
from sailq.producer.messages import Prepared
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from scraping import free_port, scrape
from timings import Timings

SLOTS = 8
MOST_MILLISECONDS = 1.0
"""The host's median time at a decode step of 8 slots, streaming."""
MOST_IDLE = 0.02
"""Share of the wall time in which the device waits for the host."""
PATCHES, PROMPT, CONTEXT, ANSWER = 160, 96, 512, 60
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"

ENDED, SECONDS, DEVICE, RUNNING, PREFILLS = range(5)
"""Columns of a null worker's record."""


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_the_hosts_time_at_a_step(redis_url: str, client: Client, tmp_path: Path, table: Table) -> None:
    jobs = [Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)] * 4 * SLOTS
    unwatched = _host_milliseconds(_steps(redis_url, client, tmp_path, jobs, tokens=1500))
    with _scraped(seconds=1.0):
        watched = _host_milliseconds(_steps(redis_url, client, tmp_path, jobs, tokens=1500))
    table(
        f"The host's time at a decode step of {SLOTS} slots, all streaming, {len(unwatched)} steps of a null runner",
        ("ms", "unwatched", "scraped every second", "bound"),
        [("median", f"{np.median(unwatched):.3f}", f"{np.median(watched):.3f}", f"≤ {MOST_MILLISECONDS}"),
         ("99 %", f"{np.percentile(unwatched, 99):.3f}", f"{np.percentile(watched, 99):.3f}", ""),
         ("mean", f"{unwatched.mean():.3f}", f"{watched.mean():.3f}", "")],
    )
    assert max(np.median(unwatched), np.median(watched)) <= MOST_MILLISECONDS


def _host_milliseconds(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each step with all slots taken that was no prefill."""
    full = steps[(steps[:, RUNNING] == SLOTS) & (steps[:, PREFILLS] == 0)]
    assert len(full) > 1000
    milliseconds: np.ndarray[Any, Any] = 1000 * (full[:, SECONDS] - full[:, DEVICE])
    return milliseconds


@contextmanager
def _scraped(seconds: float) -> Iterator[None]:
    """Workers that start meanwhile show their metrics, and somebody asks for them so often."""
    port, over, scrapes = free_port(), threading.Event(), 0

    def ask() -> None:
        nonlocal scrapes
        while not over.wait(seconds):
            with suppress(OSError):  # it has not started
                scrape(port)
                scrapes += 1

    asking = threading.Thread(target=ask)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SAILQ_METRICS_PORT", str(port))
        environment.setenv("SAILQ_METRICS_ADDRESS", "127.0.0.1")
        asking.start()
        try:
            yield
        finally:
            over.set()
            asking.join()
    assert scrapes >= 3


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_the_device_never_waits_for_the_host(redis_url: str, client: Client, tmp_path: Path, table: Table) -> None:
    timings = Timings.load()
    first, step = timings.first_token(PATCHES, PROMPT, SLOTS), timings.step(SLOTS, CONTEXT)
    random = np.random.default_rng(0)
    jobs = [_of_200_kilobytes(random) for _ in range(5 * SLOTS)]
    size = np.mean([len(blob) for job in jobs for blob in job.blobs.values()])
    assert 190_000 < size < 230_000
    steps = _steps(redis_url, client, tmp_path, jobs, ANSWER, "--prefill-ms", f"{first}", "--decode-ms", f"{step}")
    # From the first step with all slots taken to the last: before it the queue fills, after it there is no work.
    begin, end = np.flatnonzero(steps[:, RUNNING] == SLOTS)[[0, -1]]
    steady = steps[begin + 1 : end + 1]
    wall = steps[end, ENDED] - steps[begin, ENDED]
    idle, running = 1 - steady[:, DEVICE].sum() / wall, steady[:, RUNNING].mean()
    table(
        f"A worker with {SLOTS} slots on a null runner that takes a BM1684X's time by the compiler's estimate "
        f"({first:.0f} ms a first token, {step:.0f} ms a step), jobs of {size / 1000:.0f} KB, {wall:.0f} s",
        ("", "", "bound"),
        [("device idle", f"{idle:.2%}", f"≤ {MOST_IDLE:.0%}"), ("slots taken, mean", f"{running:.2f} of {SLOTS}", "")],
    )
    assert idle <= MOST_IDLE


def _steps(
    url: str, client: Client, folder: Path, jobs: Sequence[Prepared], tokens: int, *timing: str
) -> np.ndarray[Any, Any]:
    """The record of a null worker that answered these jobs, streaming, with so many tokens each."""
    record = folder / "steps.npy"
    with _null_worker(url, client, folder, "--record", str(record), *timing):
        options = GenerationOptions(max_new_tokens=tokens)
        handles = [client.submit_prepared(job, options=options, stream=True) for job in jobs]
        for handle in handles:
            result = client.wait(handle.job, 300)
            assert result.error is None and result.usage.completion_tokens == tokens
    steps: np.ndarray[Any, Any] = np.load(record)
    return steps


@contextmanager
def _null_worker(url: str, client: Client, folder: Path, *arguments: str) -> Iterator[Companion]:
    command = [sys.executable, str(NULL_WORKER), "--redis-url", url, "--slots", str(SLOTS), *arguments]
    worker = Companion("null worker", command, folder / "worker.log")
    try:
        worker.wait_until(Fleet(client.connection).workers, 60)
        yield worker
        assert worker.stop(30) == 0, worker.tail()
    finally:
        worker.stop()


def _of_200_kilobytes(random: np.random.Generator) -> Prepared:
    """A job with a clip of 4 frames of 420 × 616 that no other job has."""
    frames = random.integers(0, 20, (4, 420, 616, 3), np.uint8)
    digest, blob = encode_frames(frames)
    part = FramesPart(type="video", blob=digest, frames=4, height=420, width=616)
    return Prepared((Message(role="user", content=(part, TextPart(text="请描述视频中的内容"))),), {digest: blob}, 0)
