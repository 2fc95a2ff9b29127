"""32 different clips with captions of mixed lengths, for the benchmarks on a CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler

COUNT, SHORTEST, LONGEST = 32, 16, 128
THREADS = 2


@dataclass(frozen=True)
class Caption:
    """A clip like that of sophon-demo's test, 2 frames of 140 × 224, and the number of tokens of its answer."""

    messages: tuple[Message, ...]
    frames: dict[str, Frames]
    tokens: int

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(max_new_tokens=self.tokens)


def captions() -> list[Caption]:
    """Lengths from 16 to 128 tokens, evenly spread, in a seeded order."""
    random = np.random.default_rng(0)
    lengths = random.permutation(np.linspace(SHORTEST, LONGEST, COUNT).round().astype(int))
    return [_caption(random, int(length)) for length in lengths]


def _caption(random: np.random.Generator, tokens: int) -> Caption:
    frames = np.empty((2, 140, 224, 3), np.uint8)
    ground, colour = random.integers(0, 256, (2, 3))
    frames[:] = ground
    for frame in frames:
        top, left = random.integers(0, 110), random.integers(0, 190)
        frame[top : top + 30, left : left + 34] = colour
    part = FramesPart(type="video", blob=hashlib.sha256(frames).hexdigest(), frames=2, height=140, width=224)
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
