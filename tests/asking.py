"""Questions that tests ask sailq-tiny."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sailq.shared.frames import decode_frames
from sailq.shared.jobs import GenerationOptions, media_parts
from sailq.shared.media.messages import prepare
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.request import Outcome, Request
from sailq.worker.engine.scheduler import Scheduler

LONG_ANSWER = {"max_new_tokens": 4000, "temperature": 50.0, "seed": 49}
"""Options by which "Hello" gets 2,029 tokens, all that its context allows: some seconds. Other seeds end far sooner."""
ANSWER_OF_960 = GenerationOptions(max_new_tokens=960, temperature=50.0, seed=23)
"""Options by which "Tell me." gets 960 tokens, with a clip too, for tests that wait for the end."""


def prepared(engine: Engine, row: dict[str, Any], folder: Path, options: GenerationOptions) -> PreparedPrompt:
    """A row of `write_samples`, its media in `folder`, through the producer's and the engine's host work alone."""
    asked = prepare(row["messages"], base=folder, card=engine.card)
    parts = media_parts(asked.messages)
    frames = {part.blob: decode_frames(asked.blobs[part.blob], (part.frames, part.height, part.width))
              for part in parts}
    return engine.prepare(asked.messages, frames, options)


def answer(engine: Engine, prepared: PreparedPrompt, slot: int, options: GenerationOptions) -> list[int]:
    """The tokens of an answer. Raises NotFinite if the scores are not finite."""
    generation = engine.start(prepared, options, slot)
    while generation.finish_reason is None and generation.error is None:
        engine.step([generation])
    engine.release(slot)
    if generation.error is not None:
        raise generation.error
    return generation.tokens


def together(
    engine: Engine, work: Iterable[tuple[PreparedPrompt, GenerationOptions]]
) -> list[tuple[list[int], Outcome]]:
    """Tokens and outcome of each request, all submitted at once."""
    scheduler, requests = Scheduler(engine), [Request(*one) for one in work]
    for request in requests:
        scheduler.submit(request)
    while any(request.outcome is None for request in requests):
        scheduler.step()
    return [(request.generation.tokens if request.generation else [], request.wait(0)) for request in requests]
