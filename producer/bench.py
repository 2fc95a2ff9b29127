"""Runs sophon-demo's performance test against the service, measured from the file on disk to the text at the caller."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sailq.shared.errors import NotFound, SailqError
from sailq.shared.estimates import Estimate, MeasuredJob, estimate
from sailq.shared.frames import Frames, encode_frames
from sailq.shared.jobs import GenerationOptions, Message, Result, media_parts
from sailq.shared.media.messages import prepare
from sailq.shared.workers import WorkerInfo

from .captioning.rows import Row, as_row, row_of, why
from .captioning.window import Request, run_batch
from .client import Client
from .samples import sample
from .waiting import Waiter

QUESTION = "请描述视频中的内容"
"""The prompt of sophon-demo's page."""
_CORNER = 8
"""The side in pixels of a JPEG block."""
_IDLE_SECONDS = 2.0
_STAGES = ("queue_wait", "fetch", "preprocess", "vision_encode", "prefill")
"""The stages of `Timings` before the first token."""


@dataclass(frozen=True)
class PublishedFigures:
    """A row of sophon-demo's table, in seconds and tokens/s: github.com/sophgo/sophon-demo, in this model's sample."""

    platform: str = "SE7-32"
    model: str = "qwen2-vl-7b_int4_seq512_1dev.bmodel"
    first_token_latency: float = 3.55
    tokens_per_second: float = 9.67


@dataclass(frozen=True)
class Spread:
    """Statistics of one quantity over several jobs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class OneAtATime:
    """The figures of jobs that ran one at a time.

    Attributes:
        first_token_latency: seconds from the start of reading the file until the caller has the first text.
        tokens_per_second: (completion tokens - 1) / seconds between the first and the last; None for one-token answers.
        breakdown: median seconds of each part of the first token's latency: `sample` (the caller reads, resizes and
            encodes), the stages of `Timings`, and `other` (upload, delivery and the time between stages).
        completion_tokens: median.
    """

    jobs: int
    first_token_latency: Spread
    tokens_per_second: Spread | None
    breakdown: dict[str, float]
    completion_tokens: float


@dataclass(frozen=True)
class AllAtOnce:
    """The figures of jobs of which `in_flight` ran at a time. `wall`: seconds, reading the media included."""

    jobs: int
    in_flight: int
    wall: float
    tokens_per_second: float
    captions_per_hour: float


@dataclass(frozen=True)
class Report:
    """All measured figures. `slots`: the slots of all `workers` of the model. Token counts are per job. `estimate`:
    what one box should reach with the model's directory, if it is known."""

    model: str
    device: str
    workers: int
    slots: int
    prompt_tokens: int
    vision_tokens: int
    one_at_a_time: OneAtATime
    all_at_once: AllAtOnce
    published: PublishedFigures
    estimate: Estimate | None


@dataclass(frozen=True)
class _Answer:
    """The times of one job. `first_text`: seconds from its start to the first text. `sample`: those until its frames
    were encoded."""

    messages: Sequence[Message]
    first_text: float
    sample: float
    result: Result

    def breakdown(self) -> dict[str, float]:
        timings = self.result.timings.model_dump()
        parts = {"sample": self.sample, **{stage: timings[stage] or 0.0 for stage in _STAGES}}
        return {**parts, "other": self.first_text - sum(parts.values())}


def sample_clip(folder: Path, size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """Renders a clip to `folder` and returns it as a message part.

    `size`: frames, height and width to ask for; None: sophon-demo's options, 2 frames of 140 × 210.

    Raises SampleError.
    """
    path = folder / "clip.mp4"
    medium = sample(seed=7, index=0).media[0]
    if size is not None:
        frames, height, width = size
        # Jobs round an odd number to an even one, which may be larger.
        replace(medium, frames=max(medium.frames, frames + 1)).write(path)
        return {"type": "video", "video": str(path), "nframes": frames, "resized_height": height,
                "resized_width": width}
    medium.write(path)
    return {
        "type": "video",
        "video": str(path),
        "resized_height": 140,
        "resized_width": 210,
        "video_sample_num": 2,
    }


def encode_unseen(frames: Frames) -> tuple[str, bytes]:
    """Encodes frames with fresh noise in one corner, so that no worker has seen these pixels before.

    A worker caches the vision tokens of a clip by its content; a repeated clip would measure the cache.
    """
    unseen = frames.copy()
    unseen[:, :_CORNER, :_CORNER] = np.frombuffer(os.urandom(_CORNER * _CORNER), np.uint8).reshape(_CORNER, _CORNER, 1)
    return encode_frames(unseen)


def measure(
    client: Client,
    messages: Sequence[Mapping[str, Any]],
    *,
    workers: Sequence[WorkerInfo],
    directory: str,
    options: GenerationOptions,
    repeat: int,
    jobs: int | None,
    tell: Callable[[str], object],
    watch: Callable[[], None],
) -> Report:
    """Runs one uncounted job, then `repeat` jobs one at a time, then `jobs` jobs with all slots busy.

    Args:
        workers: all workers that serve the model.
        directory: the model's, for an estimate.
        jobs: number of jobs; None: 4 for each slot.
        tell: called with a text about the current step, for people.
        watch: called while waiting; may raise to end the measurement.

    Raises SailqError if a job fails, and cancels the jobs in flight.
    """
    model = workers[0].model
    slots = sum(worker.slots for worker in workers)
    jobs = jobs or 4 * slots

    tell("warming up")
    _ask(client, messages, model, options, watch)
    answers = []
    for number in range(1, repeat + 1):
        tell(f"one at a time: {number} of {repeat}")
        answers.append(_ask(client, messages, model, options, watch))

    tokens = 0
    began = time.perf_counter()
    request = Request(messages, model, arguments={"options": options})
    batch = run_batch(
        client, range(jobs), lambda _: request, window=2 * slots, idle=watch, encode=encode_unseen
    )
    with closing(batch):
        for number, (_, answer, _) in enumerate(batch, 1):
            row = row_of(answer)
            _raise_if_failed(row)
            tokens += row["metrics"]["usage"]["completion_tokens"]
            tell(f"all slots at once: {number} of {jobs}")
    wall = time.perf_counter() - began

    usage = answers[0].result.usage
    one = _one_at_a_time(answers)
    media = tuple((part.frames, part.height, part.width) for part in media_parts(answers[0].messages))
    return Report(
        model=model,
        device=", ".join(sorted({worker.device for worker in workers})),
        workers=len(workers),
        slots=slots,
        prompt_tokens=usage.prompt_tokens,
        vision_tokens=usage.vision_tokens,
        one_at_a_time=one,
        all_at_once=AllAtOnce(jobs, min(jobs, 2 * slots), wall, tokens / wall, 3600 * jobs / wall),
        published=PublishedFigures(),
        estimate=estimate(directory, MeasuredJob(media, usage.prompt_tokens, one.completion_tokens)),
    )


def _ask(
    client: Client,
    messages: Sequence[Mapping[str, Any]],
    model: str,
    options: GenerationOptions,
    watch: Callable[[], None],
) -> _Answer:
    """Runs one job from the file to the full answer, and times it."""
    card = client.card(model)  # the client knows the name after the first job
    began = time.perf_counter()
    prepared = prepare(messages, card=card, encode=encode_unseen)
    sampled = time.perf_counter() - began
    job = client.submit_prepared(prepared, model=model, options=options, stream=True).job
    first: float | None = None
    waiter = Waiter(client.connection, client.inbox, [job], text=True)
    try:
        while True:
            news = waiter.poll(_IDLE_SECONDS)
            if first is None and news.chunks.get(job):
                first = time.perf_counter() - began
            for _, result in news.ended:
                if isinstance(result, NotFound):
                    raise result
                _raise_if_failed(as_row(result))
                if first is None:
                    raise SailqError("The model answered without text, so there is no first token to measure.")
                return _Answer(prepared.messages, first, sampled, result)
            if not news.chunks:
                watch()
    except (KeyboardInterrupt, SailqError):
        with suppress(SailqError):
            client.cancel(job)
        raise


def _raise_if_failed(row: Row) -> None:
    reason = why(row)
    if reason is not None:
        error = SailqError(reason)
        if row["error"] is not None:
            error.code = row["error"]["code"]
        raise error


def _one_at_a_time(answers: Sequence[_Answer]) -> OneAtATime:
    rates = [rate for answer in answers if (rate := answer.result.tokens_per_second) is not None]
    ways = [answer.breakdown() for answer in answers]
    return OneAtATime(
        jobs=len(answers),
        first_token_latency=Spread.of([answer.first_text for answer in answers]),
        tokens_per_second=Spread.of(rates) if rates else None,
        breakdown={stage: statistics.median(way[stage] for way in ways) for stage in ways[0]},
        completion_tokens=statistics.median(answer.result.usage.completion_tokens for answer in answers),
    )
