"""A few jobs through a real producer and a real worker, recorded for play back."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from camera import camera_clip, stamped
from playback import Trip
from roles import Asked, WorkerRoles, producer_trips, scripts
from rq.job import Job as RQJob
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, Job, Message, TextPart
from sailq.shared.media.messages import Prepared
from wiretap import load, wiretap

QUESTION = "请描述视频中的内容"
_JOBS = 3


@dataclass(frozen=True)
class Recording:
    """What a producer and a worker sent, and one job of which both spoke. `scripts`: what their server must know.
    `prepared`: of the job that was asked."""

    prepared: Prepared
    worker: WorkerRoles
    producer: list[Trip]
    asked: Asked
    scripts: list[Trip]


def clip(frames: int, height: int, width: int, stamp: bytes) -> Prepared:
    """A question about a clip that no other `stamp` of 16 bytes makes."""
    digest, blob = stamped(encode_frames(camera_clip(frames, height, width))[1], stamp)
    part = FramesPart(type="video", blob=digest, frames=frames, height=height, width=width)
    return Prepared((Message(role="user", content=(part, TextPart(text=QUESTION))),), {digest: blob}, 0)


def record(
    client: Client, size: tuple[int, int, int], tokens: int, stop_worker: Callable[[], Path]
) -> Recording:
    """The worker serves already, alone, and takes about 2.5 s for an answer: longer than from beat to beat.

    Args:
        size: of each job's clip: frames, height, width.
        tokens: of each answer.
        stop_worker: ends the worker and returns the file of what it sent.
    """
    asked: list[Asked] = []
    here = threading.current_thread().name
    with wiretap() as sent:
        for number in range(_JOBS):
            begin, stamp = len(sent), b"%016d" % number
            prepared = clip(*size, stamp)  # none is known to the server, or in the worker's cache
            job = client.submit_prepared(prepared, options={"max_new_tokens": tokens}).job
            submission = [one for one in sent[begin:] if one.thread == here]
            asked.append(_asked(client, job, stamp))
            result = client.wait(job, 60)
            assert result.error is None and result.usage.completion_tokens == tokens, result
    worker = load(stop_worker())
    return Recording(
        prepared, WorkerRoles.part(worker, asked), producer_trips(submission, asked[-1]), asked[-1],
        [*scripts(worker), *scripts(sent)],
    )


def _asked(client: Client, job: str, stamp: bytes) -> Asked:
    request = decode(Job, client.connection.hget(keys.job(job), "request") or b"")
    (part,) = (part for part in request.messages[0].content if isinstance(part, FramesPart))
    return Asked(
        job=job.encode(), digest=part.blob.encode(),
        blob=client.connection.get(keys.blob(part.blob)) or b"",
        data=client.connection.hget(RQJob.key_for(job), "data") or b"",
        submitted=struct.pack(">d", request.submitted_at), stamp=stamp,
    )
