"""The load of idle boxes on a server, how soon they take a new job, and the memory of a waiting job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from camera import camera_clip, stamped
from farm import NullWorker
from null_jobs import submit
from own_server import OwnServer

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.shared.media.messages import Prepared

WATCHED_SECONDS = 16.0
"""Two records of a worker's and eight looks after abandoned jobs."""
MOST_CONNECTIONS, MOST_COMMANDS = 4, 3.0
MOST_WAIT = 50.0
"""Milliseconds."""
MOST_BYTES = 300_000


@pytest.mark.proof
@pytest.mark.alone
def test_idle_boxes_hold_few_connections_and_send_few_commands(
    start_null: Callable[..., NullWorker], folder: Path, eventually: Callable[..., None]
) -> None:
    """One that is alone, and two that take turns in looking after abandoned jobs; all have had jobs, and have taken the
    tokens that these left."""
    held, rates = [], []
    for boxes in (1, 2):
        (folder / f"{boxes}").mkdir()
        with OwnServer(folder / f"{boxes}") as own, own.start() as server:
            workers = [start_null("--slots", "8", url=own.url) for _ in range(boxes)]
            with Client(own.url) as client:
                jobs = [submit(client, 20, stream=False) for _ in range(40)]
                assert len(dict(client.as_completed(jobs, 60))) == len(jobs)
            eventually(lambda server=server: not server.exists(keys.bell(keys.queue("sailq-tiny"))))
            connections, sent = watched(server, WATCHED_SECONDS)
            held.append(connections)
            rates.append(sent / boxes)
            for worker in workers:
                worker.kill()
    print(f"figure: idle boxes of 8 slots, one alone and two together: {' and '.join(map(str, held))} connections (at "
          f"most {MOST_CONNECTIONS} each), {rates[0]:.2f} and {rates[1]:.2f} commands/s each (at most "
          f"{MOST_COMMANDS:g})")
    assert all(0 < rate <= MOST_COMMANDS for rate in rates)
    assert all(connections <= MOST_CONNECTIONS * boxes for boxes, connections in enumerate(held, 1))


def watched(server: redis.Redis, seconds: float) -> tuple[int, float]:
    """(connections that others hold, commands a second that they send); what scripts call is not sent."""
    own, sent = 2, 0  # the server's watcher and this test's connection
    until = time.monotonic() + seconds
    with server.monitor() as monitor:
        connections = len(server.client_list()) - own
        while time.monotonic() < until:
            sent += monitor.next_command()["client_type"] != "lua"
    return connections, (sent - 1) / seconds  # without client_list


@pytest.mark.proof
@pytest.mark.alone
def test_idle_boxes_take_a_job_at_once(client: Client, start_null: Callable[..., NullWorker]) -> None:
    for _ in range(2):
        start_null("--slots", "8")
    waits = []
    for _ in range(200):
        result = client.wait(submit(client, 1, stream=False), 60)
        assert result.timings.queue_wait is not None
        waits.append(1000 * result.timings.queue_wait)
    median, late = np.percentile(waits, [50, 99])
    print(f"figure: from submission to claim, idle boxes, 200 jobs: {median:.1f} ms, 99 % {late:.1f} ms (at most "
          f"{MOST_WAIT:g})")
    assert late <= MOST_WAIT


def test_a_waiting_job_with_a_clip_takes_at_most_300_kb_of_the_server(client: Client) -> None:
    """4 frames with a camera's grain: blob, job, RQ's record, its place in the queue and in a conversation.

    No side of Qwen2-VL's frames is 630: they are of 616 or of 644.
    """
    blobs = [encode_frames(camera_clip(4, 420, 644, seed))[1] for seed in range(4)]
    jobs = 200
    before = used_memory(client.connection)
    for number in range(jobs):
        digest, blob = stamped(blobs[number % len(blobs)], b"%016d" % number)
        part = FramesPart(type="video", blob=digest, frames=4, height=420, width=644)
        message = Message(role="user", content=(part, TextPart(text="请描述视频中的内容")))
        client.submit_prepared(Prepared((message,), {digest: blob}, 0))
    each = (used_memory(client.connection) - before) / jobs
    size = sum(map(len, blobs)) / len(blobs)
    print(f"figure: a waiting job, 4 frames of 420 x 644: {each / 1000:.1f} KB of the "
          f"server's memory (at most {MOST_BYTES / 1000:g}), {size / 1000:.1f} of them the frames")
    assert size < each <= MOST_BYTES


def used_memory(connection: redis.Redis) -> int:
    """The memory of the data, without that of connections."""
    return int(connection.memory_stats()["dataset.bytes"])
