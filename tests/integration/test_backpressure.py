"""A full queue refuses jobs or makes the producer wait. A full server is reported as full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from answering import Answerer
from commands import invoke, rows

from sailq.producer.client import Client
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.errors import QueueFull
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.settings import Settings

HI = Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)


def clip(seed: int) -> Prepared:
    digest, blob = encode_frames(np.random.default_rng(seed).integers(0, 256, (1, 56, 56, 3), np.uint8))
    part = FramesPart(type="image", blob=digest, frames=1, height=56, width=56)
    return Prepared((Message(role="user", content=(part,)),), {digest: blob}, 4)


def test_jobs_beyond_the_bound_are_refused_and_leave_nothing(redis_url: str, connection: redis.Redis) -> None:
    with Client(redis_url, settings=Settings(redis_url=redis_url, max_queued=3)) as client:
        conversation = client.submit_prepared(HI).conversation
        client.submit_prepared(HI, conversation=conversation)  # deferred behind the first turn: it counts, too
        client.submit_prepared(HI)
        before = set(connection.keys("*"))
        with pytest.raises(QueueFull, match="^3 jobs .*sailq-tiny"):
            client.submit_prepared(clip(0))
        assert set(connection.keys("*")) == before
        client.submit_prepared(HI, model="another")


def test_clips_beyond_the_bound_are_refused_until_others_have_ended(
    redis_url: str, connection: redis.Redis, answerer: Answerer
) -> None:
    clips = [clip(seed) for seed in range(3)]
    size = max(len(blob) for one in clips for blob in one.blobs.values())
    settings = Settings(redis_url=redis_url, max_blob_bytes=2 * size)
    with Client(redis_url, settings=settings) as client:
        jobs = [client.submit_prepared(one).job for one in (clips[0], clips[1], clips[0])]
        held = sum(len(blob) for one in clips[:2] for blob in one.blobs.values())
        assert int(connection.get(keys.CLIP_BYTES) or 0) == held  # the same clip counts once
        with pytest.raises(QueueFull, match="clips"):
            client.submit_prepared(clips[2])
        client.submit_prepared(HI)
        answerer.answer(jobs[0], "yes")
        with pytest.raises(QueueFull, match="clips"):  # another job needs the same clip
            client.submit_prepared(clips[2])
        answerer.answer(jobs[2], "yes")
        client.submit_prepared(clips[2])
        assert connection.zcard(keys.CLIPS) == len(connection.keys(keys.clip("*"))) == 2
        held = sum(len(blob) for one in clips[1:] for blob in one.blobs.values())
        assert int(connection.get(keys.CLIP_BYTES)) == held


def test_a_producer_waits_for_room_with_a_bound(
    redis_url: str, connection: redis.Redis, later: Callable[..., None]
) -> None:
    with Client(redis_url, settings=Settings(redis_url=redis_url, max_queued=1)) as client:
        client.submit_prepared(HI)
        with pytest.raises(QueueFull):
            client.submit_prepared(HI, wait=0.3)
        later(connection.delete, f"rq:queue:{keys.queue('sailq-tiny')}")
        assert client.submit_prepared(HI, wait=30).job


def test_the_command_line_says_that_the_queue_is_full_or_waits(
    redis_url: str, served_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAILQ_MAX_QUEUED", "1")
    for _ in write_samples(3, 6, tmp_path / "clips"):
        pass
    done = invoke("caption", tmp_path / "clips", "--out", tmp_path / "out.jsonl", url=served_url)
    assert done.returncode == 0, done.stderr
    assert all(row["error"] is None for row in rows(tmp_path / "out.jsonl"))
    with Client(redis_url) as client:
        client.submit_prepared(HI)
        done = invoke("ask", "--prompt", "Hi", url=redis_url)
    assert done.returncode == 1 and done.error and done.error.code == "queue_full" and "sailq-tiny" in str(done.error)


def test_a_server_without_memory_is_named(redis_url: str, connection: redis.Redis) -> None:
    connection.config_set("maxmemory", 1)
    try:
        done = invoke("ask", "--prompt", "Hi", url=redis_url)
    finally:
        connection.config_set("maxmemory", 0)
    assert done.returncode == 1 and done.error and done.error.code == "server_unavailable"
    assert "maxmemory" in str(done.error)
