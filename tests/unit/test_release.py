"""sailq against the original release itself: transformers 4.45.1 and 4.57.1, each in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import release
from qwen2vl import Prompts, options
from release_record import GREEDY, POSITIONS, RECORD, RECORDED, TOKENS, greedy_prompts, position_prompts, told

from sailq.shared.frames import Frames
from sailq.shared.jobs import Message
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.sampling import repetition_penalty, softmax, warp
from sailq.worker.model_files.model_paths import resolve

pytestmark = [pytest.mark.proof, pytest.mark.timeout(3600)]

MODEL = resolve("sailq-tiny")
VERSIONS = pytest.mark.parametrize("version", [release.FIRST, release.LAST])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(MODEL, threads=1)


@VERSIONS
def test_tokens_and_positions_of_a_thousand_prompts(engine: Engine, version: str) -> None:
    prompts, asked, ours = position_prompts(), [], []
    for _ in range(POSITIONS):
        messages, frames = prompts.conversation()
        asked.append(messages)
        ours.append(_told(engine.prepare(messages, frames, options())))
    theirs = [told(one.tokens, one.positions, one.delta) for one in release.ask(version, MODEL, asked, {})]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"\nfigure: tokens and positions against transformers {version}: {same} of {POSITIONS} prompts equal")
    assert ours == theirs
    assert theirs[:RECORDED] == json.loads(RECORD.read_text())["positions"], "run tests/release_record.py"


def _told(prepared: PreparedPrompt) -> list[object]:
    return told(prepared.tokens, prepared.positions, prepared.rope_delta)


@VERSIONS
def test_patches(engine: Engine, version: str) -> None:
    """Videos have an even number of frames, as qwen-vl-utils makes them: 4.45.1 takes no other."""
    prompts, spec = Prompts(3, range(2, 10, 2)), ModelSpec.load(MODEL)
    conversations = [prompts.conversation() for _ in range(100)]
    frames: dict[str, Frames] = {}
    for _, media in conversations:
        frames |= media
    worst = 0.0
    answers = release.ask(version, MODEL, [messages for messages, _ in conversations], frames, patches=True)
    for conversation, answer in zip(conversations, answers, strict=True):
        prepared = engine.prepare(*conversation, options())
        for kind, theirs in (("image", answer.images), ("video", answer.videos)):
            if theirs is not None:
                ours = spec.family.pixel_values(_patches(conversation[0], prepared, kind))
                assert ours.shape == theirs.shape
                worst = max(worst, float(np.abs(ours - theirs).max() / np.ptp(theirs)))
    print(f"\nfigure: patches against transformers {version}: grids equal; {worst:.1e} of the range apart at most")
    assert 0 < worst <= 1e-5


def _patches(messages: Sequence[Message], prepared: PreparedPrompt, kind: str) -> Frames:
    """Of all media of a kind, in order."""
    kinds = [part.type for message in messages for part in message.content if part.type != "text"]
    chosen = [medium.patches for medium, type in zip(prepared.media, kinds, strict=True) if type == kind]
    return np.concatenate([patches for patches in chosen if patches is not None])


def test_sampling_probabilities() -> None:
    """`test_sampling.py` compares each filter with the installed transformers."""
    random = np.random.default_rng(9)
    prompt, logits = random.integers(0, 896, 40), random.normal(0, 4, (20, 896)).astype(np.float32)
    given = [{"temperature": t, "top_k": k, "top_p": p, "repetition_penalty": r}
             for t in (0.3, 1.0, 1.7) for k in (0, 1, 50) for p in (0.1, 0.9, 1.0) for r in (1.0, 1.3)]
    request = {"kind": "sampling", "model": str(MODEL), "options": given}
    theirs = release.run(release.LAST, request, {"prompt": prompt, "logits": logits})
    for number, one in enumerate(given):
        for row, expected in zip(logits, theirs[str(number)], strict=True):
            penalised = repetition_penalty(row.astype(np.float64), np.unique(prompt), one["repetition_penalty"])
            ours = softmax(warp(penalised, one["temperature"], one["top_k"], one["top_p"]))
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


def test_greedy_tokens_are_the_recorded_ones() -> None:
    """`test_engine.py` compares sailq with the record."""
    conversations = greedy_prompts()
    frames: dict[str, Frames] = {}
    for _, media in conversations:
        frames |= media
    asked = [messages for messages, _ in conversations]
    answers = [one.answer for one in release.ask(release.LAST, MODEL, asked, frames, max_new_tokens=TOKENS)]
    assert len(answers) == GREEDY and answers == json.loads(RECORD.read_text())["greedy"]
