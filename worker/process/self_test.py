"""Tests the device before the worker takes a job."""

from __future__ import annotations

import numpy as np

from sailq.shared.errors import SailqError, TooLong
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart

from ..engine.engine import Engine
from ..engine.preprocessor import PreparedPrompt

_TOKENS = 3


def self_test(engine: Engine) -> None:
    """Answer a short question about noise in the first and in the last slot, and compare the tokens.

    Raises:
        SailqError: the device fails, or the two answers differ.
    """
    try:
        # Two digests, so that the vision cache does not serve the second image.
        first, last = (
            _answer(engine, _question(engine, name * 64), slot) for name, slot in (("0", 0), ("f", engine.slots - 1))
        )
        if first != last:
            raise ValueError(f"the same prompt gave the tokens {first} and then {last}")
    except Exception as error:
        raise SailqError(f"{engine.device} failed its self-test, so this worker takes no jobs: {error}.") from error


def _question(engine: Engine, digest: str) -> PreparedPrompt:
    side = 2 * engine.card.patch_size * engine.card.merge_size  # pixels: 4 vision tokens
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    image = FramesPart(type="image", blob=digest, frames=1, height=side, width=side)
    question, options = TextPart(text="?"), GenerationOptions(max_new_tokens=_TOKENS)
    try:
        return engine.prepare([Message(role="user", content=(image, question))], {digest: pixels}, options)
    except TooLong:  # a bmodel without vision, or for smaller images
        return engine.prepare([Message(role="user", content=(question,))], {}, options)


def _answer(engine: Engine, prepared: PreparedPrompt, slot: int) -> list[int]:
    generation = engine.start(prepared, GenerationOptions(max_new_tokens=_TOKENS), slot)
    while generation.finish_reason is None and generation.error is None:
        engine.step([generation])
    engine.release(slot)
    if generation.error is not None:
        raise generation.error
    return generation.tokens
