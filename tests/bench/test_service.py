"""What the queue costs: captions through Redis and RQ against the same engine called directly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from captions import THREADS, answer, captions
from conftest import Bars, Table
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.producer.messages import Prepared
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart
from sailq.worker.engine import Engine

SLOTS, ROUNDS = 8, 8
LEAST = 0.97
"""Captions/s of the service as a share of the bare engine's: the median of the rounds' own shares."""


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_service(
    model: Path, start_worker: Callable[..., Companion], client: Client, table: Table, bars: Bars
) -> None:
    """Rounds of one and the other, each first in turn, so that a machine that grows slower does so for both, after one
    that is not counted; nothing is cached."""
    work = captions()
    start_worker("--model", str(model), "--slots", str(SLOTS), "--threads", str(THREADS), "--vision-cache", "0")
    engine = Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)
    jobs = []
    for one in work:
        blobs = dict(encode_frames(frames) for frames in one.frames.values())
        (digest,) = blobs
        (message,) = one.messages
        content = tuple(part.model_copy(update={"blob": digest}) if isinstance(part, FramesPart) else part
                        for part in message.content)
        jobs.append((Prepared((message.model_copy(update={"content": content}),), blobs, 0), one.options))

    def service() -> None:
        handles = [client.submit_prepared(job, model=model.name, options=options) for job, options in jobs]
        for handle, one in zip(handles, work, strict=True):
            result = client.wait(handle.job, 600)
            assert result.error is None and result.usage.completion_tokens == one.tokens

    def bare() -> None:
        answer(engine, work)

    rates: dict[str, list[float]] = {"bare engine": [], "through Redis and RQ": []}
    ways = [("bare engine", bare), ("through Redis and RQ", service)]
    for number in range(1 + ROUNDS):
        for name, way in ways if number % 2 == 0 else ways[::-1]:
            began = time.monotonic()
            way()
            rates[name].append(len(work) / (time.monotonic() - began))
            print(f"{name}: {rates[name][-1]:.3f} captions/s", flush=True)
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    shares = sorted(service / bare for bare, service in list(zip(*rates.values(), strict=True))[1:])
    share = statistics.median(shares)
    table(
        f"{len(work)} captions, {SLOTS} slots, {THREADS} threads, medians of {ROUNDS} rounds in turn, whose shares are "
        f"{', '.join(f'{one:.2f}' for one in shares)}",
        ("way", "captions/s", "share", "bound"),
        [("bare engine", f"{medians['bare engine']:.3f}", "1", ""),
         ("through Redis and RQ", f"{medians['through Redis and RQ']:.3f}", f"{share:.3f}", f"≥ {LEAST}")],
    )
    bars("What the queue costs", "captions/s", medians)
    assert share >= LEAST
