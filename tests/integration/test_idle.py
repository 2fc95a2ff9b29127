"""What boxes cost a server that has nothing for them, how soon they take what comes, and what a waiting job takes."""

from __future__ import annotations

import signal
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
from wiretap import load

WATCHED_SECONDS = 16.0
"""Two idle beats and eight looks after abandoned jobs."""
MOST_CONNECTIONS, MOST_COMMANDS = 4, 3.0
MOST_WAIT = 50.0
"""Milliseconds."""
MOST_BYTES = 300_000




@pytest.mark.proof
@pytest.mark.alone
def test_idle_boxes_hold_few_connections_and_send_few_commands(
    connection: redis.Redis, redis_url: str, start_null: Callable[..., NullWorker], folder: Path, tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    """One that is alone, and so looks after abandoned jobs each time, and two that take turns; all have had jobs."""
    boxes: dict[str, list[NullWorker]] = {}
    with OwnServer(folder) as own, own.start() as theirs:
        servers = {redis_url: connection, own.url: theirs}
        for number, url in enumerate(servers, 1):
            sent = [str(tmp_path / f"{number}-{box}.sent") for box in range(number)]
            boxes[url] = [start_null("--slots", "8", "--sent", file, url=url) for file in sent]
            with Client(url) as client:
                jobs = [submit(client, 20, stream=False) for _ in range(40)]
                assert len(dict(client.as_completed(jobs, 60))) == len(jobs)
        for server in servers.values():  # their jobs are closed, too
            eventually(lambda: not server.exists(f"rq:wip:{keys.queue('sailq-tiny')}"))  # noqa: B023
        began = time.time()
        time.sleep(WATCHED_SECONDS)
        # A worker that other tests share serves another database of the first one's server.
        connections = {url: sum(client["db"] == "0" for client in server.client_list()) - 1
                       for url, server in servers.items()}
        for box in [box for some in boxes.values() for box in some]:
            box.signal(signal.SIGTERM)
            box.wait_for_end()
    rates = [
        sum(len(one.commands) for one in load(file) if began <= one.at < began + WATCHED_SECONDS) / WATCHED_SECONDS
        for file in sorted(tmp_path.glob("*.sent"))
    ]
    print(f"figure: idle boxes of 8 slots, one alone and two together: {list(connections.values())} connections, "
          f"{', '.join(f'{rate:.2f}' for rate in rates)} commands/s (at most {MOST_COMMANDS:g} each)")
    assert len(rates) == 3 and all(0 < rate <= MOST_COMMANDS for rate in rates)
    assert all(held <= MOST_CONNECTIONS * len(boxes[url]) for url, held in connections.items())


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
    """Of data alone, without what connections hold."""
    return int(connection.memory_stats()["dataset.bytes"])
