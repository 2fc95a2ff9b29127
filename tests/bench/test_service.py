"""What the queue costs: captions through Redis and RQ against the same engine called directly."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from captions import COUNT, THREADS, answer, captions
from conftest import Bars, Table
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.producer.messages import Prepared
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart
from sailq.worker.engine import Engine
from turns import TURN_SECONDS, Turns

SLOTS, ROUNDS = 8, 3
LEAST = 0.97
"""Captions/s of the service as a share of the bare engine's."""
BARE, QUEUED = "bare engine", "through Redis and RQ"


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_service(
    model: Path, start_worker: Callable[..., Companion], redis_url: str, table: Table, bars: Bars
) -> None:
    """Rounds of one and the other, after one that is not counted; nothing is cached. The service is the worker and a
    producer; their server does nothing while these two are stopped."""
    worker = start_worker("--model", model, "--slots", SLOTS, "--threads", THREADS, "--vision-cache", 0)
    spawn = multiprocessing.get_context("spawn")
    spans, processes = {}, {}
    for name, target, arguments in ((BARE, _call, (model,)), (QUEUED, _queue, (redis_url, model.name))):
        spans[name], told = spawn.Pipe(duplex=False)
        processes[name] = spawn.Process(target=target, args=(*arguments, told), daemon=True)
        processes[name].start()
    ways = {BARE: [processes[BARE].pid], QUEUED: [processes[QUEUED].pid, worker.pid]}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}

    def done() -> bool:
        for name, process in processes.items():
            assert process.is_alive(), f"{name}: ended with {process.exitcode}"
            while spans[name].poll():
                rounds[name].append(spans[name].recv())
        return all(len(found) > ROUNDS for found in rounds.values())

    turns = Turns(ways)
    try:
        turns.run_until(done)
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    rates = {name: [COUNT / turns.seconds(name, *span) for span in found[1:]] for name, found in rounds.items()}
    means = {name: len(found) / sum(1 / rate for rate in found) for name, found in rates.items()}
    share = means[QUEUED] / means[BARE]
    shares = {BARE: ("1", ""), QUEUED: (f"{share:.3f}", f"≥ {LEAST}")}
    table(
        f"{COUNT} captions, {SLOTS} slots, {THREADS} threads, {ROUNDS} rounds of each, by turns of {TURN_SECONDS:g} s",
        ("way", "captions/s", "rounds", "share", "bound"),
        [(name, f"{means[name]:.3f}", ", ".join(f"{rate:.3f}" for rate in rates[name]), *shares[name])
         for name in means],
    )
    bars("What the queue costs", "captions/s", means)
    assert share >= LEAST


def _call(model: Path, spans: Connection) -> None:
    engine = Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)
    work = captions()
    _run_rounds(lambda: answer(engine, work), spans)


def _queue(redis_url: str, model: str, spans: Connection) -> None:
    work = captions()
    jobs = []
    for one in work:
        blobs = dict(encode_frames(frames) for frames in one.frames.values())
        (digest,) = blobs
        (message,) = one.messages
        content = tuple(part.model_copy(update={"blob": digest}) if isinstance(part, FramesPart) else part
                        for part in message.content)
        jobs.append((Prepared((message.model_copy(update={"content": content}),), blobs, 0), one.options))
    with Client(redis_url) as client:

        def ask() -> None:
            handles = [client.submit_prepared(job, model=model, options=options) for job, options in jobs]
            for handle, one in zip(handles, work, strict=True):
                result = client.wait(handle.job, 600)
                assert result.error is None and result.usage.completion_tokens == one.tokens

        _run_rounds(ask, spans)


def _run_rounds(way: Callable[[], object], spans: Connection) -> None:
    """Sends `(began, ended)` of each round, in seconds of `time.monotonic`; does not return."""
    for _ in range(1 + ROUNDS):
        began = time.monotonic()
        way()
        spans.send((began, time.monotonic()))
    signal.pause()  # the other way may have turns to come
