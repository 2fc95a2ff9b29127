"""A short version of hours of load: the memory of worker, producer and server does not grow with the number of jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from farm import NullWorker

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.settings import Settings

WARM_UP, JOBS, CHUNK = 1000, 20_000, 100
MOST_GROWTH = 1.05
TTL = 20
"""Seconds: what has ended is soon forgotten, so that the server's memory can be flat."""


def job(number: int) -> tuple[Prepared, GenerationOptions, bool]:
    """Every 20th has a clip that no other has; every 10th streams."""
    text, options = TextPart(text=f"Question {number}"), GenerationOptions(max_new_tokens=1 + number % 3)
    if number % 20:
        return Prepared((Message(role="user", content=(text,)),), {}, 0), options, number % 10 == 0
    frames = np.random.default_rng(number).integers(0, 255, (2, 56, 56, 3), np.uint8)
    digest, blob = encode_frames(frames)
    part = FramesPart(type="video", blob=digest, frames=2, height=56, width=56)
    return Prepared((Message(role="user", content=(part, text)),), {digest: blob}, 0), options, True


def submit_chunk(client: Client, start: int) -> list[str]:
    handles = []
    for number in range(start, start + CHUNK):
        prepared, options, stream = job(number)
        handles.append(client.submit_prepared(prepared, options=options, stream=stream).job)
    return handles


def work(client: Client, start: int, end: int) -> None:
    """Keeps two chunks of jobs in flight."""
    ahead = submit_chunk(client, start)
    for first in range(start + CHUNK, end + CHUNK, CHUNK):
        chunk, ahead = ahead, submit_chunk(client, first) if first < end else []
        for _, result in client.as_completed(chunk, 60):
            assert result.error is None


def held(connection: redis.Redis, *pids: int) -> np.ndarray:
    """Bytes of the server, and of each process its resident bytes and open files."""
    sizes = [float(connection.info("memory")["used_memory"])]
    for pid in pids:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        sizes += [resident, len(os.listdir(f"/proc/{pid}/fd"))]
    return np.array(sizes)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_20000_jobs_leave_nothing_behind(
    redis_url: str, connection: redis.Redis, start_null: Callable[..., NullWorker],
    eventually: Callable[..., None],
) -> None:
    ttls = {"result_ttl": TTL, "job_ttl": 60, "conversation_ttl": TTL}
    # The worker's cache of clips grows to its limit by design. Without the cache, any growth is a leak.
    worker = start_null("--vision-cache", "0", **{f"SAILQ_{name.upper()}": str(ttl) for name, ttl in ttls.items()})
    ended = (keys.job("*"), keys.result("*"), keys.stream("*"), keys.conversation("*"), keys.clip("*"), "rq:results:*",
             "rq:execution*", keys.LEASES, keys.CLIPS, keys.CONVERSATIONS)

    def all_has_expired() -> bool:
        return not any(connection.keys(pattern) for pattern in ended)

    with Client(settings=Settings(redis_url=redis_url, **ttls)) as client:
        work(client, 0, WARM_UP)
        eventually(all_has_expired, 180)  # conversations' names are swept once a minute
        start = held(connection, worker.pid, os.getpid())
        began = time.monotonic()
        work(client, WARM_UP, JOBS)
        took = time.monotonic() - began
        eventually(all_has_expired, 180)
        end = held(connection, worker.pid, os.getpid())
    growth, names = end / start, ("server", "worker", "files", "producer", "files")
    changes = [f"{name} {first:.0f} -> {last:.0f}" for name, first, last in zip(names, start, end, strict=True)]
    print(f"\nfigure: {JOBS} jobs through one worker, {(JOBS - WARM_UP) / took:.0f} a second; bytes and open files "
          f"after {WARM_UP} jobs and at the end: {', '.join(changes)}; growth at most {max(growth[[0, 1, 3]]):.3f}")
    assert max(growth[[0, 1, 3]]) <= MOST_GROWTH
    assert (end[[2, 4]] <= start[[2, 4]] + 1).all()
