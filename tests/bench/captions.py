"""32 different clips with captions of mixed lengths, for the benchmarks on a CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sailq.shared.frames import Frames, encode_frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler

COUNT, SHORTEST, LONGEST = 32, 16, 128
THREADS = 2


@dataclass(frozen=True)
class Caption:
    """A clip and the number of tokens of its answer. The clip is like that of sophon-demo's test, 2 frames of 140 ×
    224, unless it says otherwise."""

    messages: tuple[Message, ...]
    frames: dict[str, Frames]
    tokens: int

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(max_new_tokens=self.tokens)

    @property
    def prepared(self) -> Prepared:
        """What a producer submits."""
        blobs = dict(encode_frames(frames) for frames in self.frames.values())
        (digest,) = blobs
        (message,) = self.messages
        content = tuple(part.model_copy(update={"blob": digest}) if isinstance(part, FramesPart) else part
                        for part in message.content)
        return Prepared((message.model_copy(update={"content": content}),), blobs, 0)


def captions() -> list[Caption]:
    """Lengths from 16 to 128 tokens, evenly spread, in a seeded order."""
    random = np.random.default_rng(0)
    lengths = random.permutation(np.linspace(SHORTEST, LONGEST, COUNT).round().astype(int))
    return [caption(random, int(length)) for length in lengths]


def caption(random: np.random.Generator, tokens: int, count: int = 2, size: tuple[int, int] = (140, 224)) -> Caption:
    """A caption of a clip of `count` frames of this height and width."""
    frames = np.empty((count, *size, 3), np.uint8)
    ground, colour = random.integers(0, 256, (2, 3))
    frames[:] = ground
    for frame in frames:
        top, left = random.integers(0, 110), random.integers(0, 190)
        frame[top : top + 30, left : left + 34] = colour
    blob, (height, width) = hashlib.sha256(frames).hexdigest(), size
    part = FramesPart(type="video", blob=blob, frames=count, height=height, width=width)
    question = TextPart(text="请描述视频中的内容")
    return Caption((Message(role="user", content=(part, question)),), {part.blob: frames}, tokens)


def answer(engine: Engine, work: Sequence[Caption]) -> list[list[int]]:
    """Each one's tokens, all asked at once, their host's work included."""
    scheduler = Scheduler(engine)
    requests = [Request(engine.prepare(one.messages, one.frames, one.options), one.options) for one in work]
    for request in requests:
        scheduler.submit(request)
    while any(request.outcome is None for request in requests):
        scheduler.step()
    return [request.generation.tokens for request in requests if request.generation is not None]
