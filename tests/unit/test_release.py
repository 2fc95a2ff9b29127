"""sailq against the original releases themselves, each in an environment of its own (tests/release.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import release
from asking import together
from qwen2vl import Prompts, options, random_model
from release_record import (
    AUTHORITIES,
    CONTEXT,
    GREEDY,
    LONG,
    POSITIONS,
    RECORDED,
    TOKENS,
    UNITS,
    Conversation,
    frames_of,
    greedy_prompts,
    model,
    position_prompts,
    recorded,
    told,
    whole_seconds,
)

from sailq.shared.frames import Frames
from sailq.shared.jobs import media_parts
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.families.family import Family
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.sampling import repetition_penalty, softmax, warp

pytestmark = [pytest.mark.proof, pytest.mark.long, pytest.mark.timeout(3600)]

RELEASES = pytest.mark.parametrize(
    ("family", "version"), [(family, version) for family, versions in release.RELEASES.items() for version in versions]
)


def rounds_seconds(family: str, version: str) -> bool:
    """Whether a release's times are right only where seconds are whole: see `whole_seconds`."""
    return family == "qwen2_5_vl" and version == release.LAST


@RELEASES
def test_tokens_and_positions_of_a_thousand_prompts(family: str, version: str) -> None:
    prompts, spec = position_prompts(family), ModelSpec.load(model(family))
    conversations = [prompts.conversation()[0] for _ in range(POSITIONS)]
    tokenizer, ours = ChatTokenizer(spec), []
    for messages in conversations:
        tokens, vision = tokenizer.encode(messages)
        ours.append(told(tokens, *spec.family.positions(vision, media_parts(messages))))
    answers = release.ask(version, model(family), conversations, {})
    theirs = [told(one.tokens, one.positions, one.delta) for one in answers]
    which = [not rounds_seconds(family, version) or whole_seconds(messages) for messages in conversations]
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    count, right = sum(which), sum(s for s, counts in zip(same, which, strict=True) if counts)
    print(f"\nfigure: {family}: tokens and positions against transformers {version}: {right} of {count} prompts equal")
    assert right == count >= 500
    if rounds_seconds(family, version):
        assert not all(same)  # else the reason to leave prompts out is gone
    else:
        assert theirs[:RECORDED] == recorded(family)["positions"], "run tests/release_record.py"


@RELEASES
def test_patches(family: str, version: str) -> None:
    """4.45.1 only takes videos with an even number of frames, as qwen-vl-utils makes them."""
    lengths = range(2, 10, 2) if version == "4.45.1" else range(1, 10)
    prompts = Prompts(3, lengths, (*Prompts.SIZES, *Prompts.WINDOWS), unit=UNITS[family])
    spec, conversations = ModelSpec.load(model(family)), [prompts.conversation() for _ in range(100)]
    worst, compared = 0.0, 0
    asked = [messages for messages, _ in conversations]
    answers = release.ask(version, model(family), asked, frames_of(conversations), patches=True)
    for conversation, answer in zip(conversations, answers, strict=True):
        for kind, theirs in (("image", answer.images), ("video", answer.videos)):
            if theirs is not None:
                ours = spec.family.pixel_values(_patches(spec.family, conversation, kind))
                assert ours.shape == theirs.shape
                worst = max(worst, float(np.abs(ours - theirs).max() / np.ptp(theirs)))
                compared += 1
    print(f"\nfigure: {family}: patches against transformers {version}: grids equal; {worst:.1e} of the range apart "
          "at most")
    assert worst <= 1e-5 and compared > 100


def _patches(family: Family, conversation: Conversation, kind: str) -> Frames:
    """Of all media of a kind, in order, in the order of the release's processor: not in windows."""
    messages, frames = conversation
    found = []
    for part in media_parts(messages):
        if part.type == kind:
            t, h, w = family.grid(part)
            _, *inputs = family.vit_inputs([(h, w)], h * w)
            groups = family.patches(frames[part.blob]).reshape(t, h * w // 4, -1)
            reverse = inputs[-1] if inputs[-1].ndim == 1 else np.arange(h * w // 4)
            found.append(groups[:, reverse].reshape(t * h * w, -1))
    return np.concatenate(found)


def test_sampling_probabilities() -> None:
    """`test_sampling.py` compares each filter with the installed transformers."""
    random = np.random.default_rng(9)
    prompt, logits = random.integers(0, 896, 40), random.normal(0, 4, (20, 896)).astype(np.float32)
    given = [{"temperature": t, "top_k": k, "top_p": p, "repetition_penalty": r}
             for t in (0.3, 1.0, 1.7) for k in (0, 1, 50) for p in (0.1, 0.9, 1.0) for r in (1.0, 1.3)]
    request = {"kind": "sampling", "model": str(model("qwen2_vl")), "options": given}
    theirs = release.run(release.LAST, request, {"prompt": prompt, "logits": logits})
    for number, one in enumerate(given):
        for row, expected in zip(logits, theirs[str(number)], strict=True):
            penalised = repetition_penalty(row.astype(np.float64), np.unique(prompt), one["repetition_penalty"])
            ours = softmax(warp(penalised, one["temperature"], one["top_k"], one["top_p"]))
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


@RELEASES
def test_greedy_tokens_are_the_recorded_ones(family: str, version: str) -> None:
    """`test_engine.py` and the next test compare sailq with the record."""
    conversations, answers = greedy_prompts(family), recorded(family)["greedy"]
    which: Sequence[int] = range(GREEDY)
    if rounds_seconds(family, version):
        which = [number for number in which if whole_seconds(conversations[number][0])]
    if version == "4.45.1":  # it takes videos with an even number of frames alone
        media = [media_parts(messages) for messages, _ in conversations]
        which = [n for n in which if all(part.type == "image" or part.frames % 2 == 0 for part in media[n])]
    asked = [conversations[number] for number in which]
    theirs = release.ask(
        version, model(family), [messages for messages, _ in asked], frames_of(asked), max_new_tokens=TOKENS
    )
    assert len(answers) == GREEDY and len(which) >= 100
    assert [one.answer for one in theirs] == [answers[number] for number in which]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_greedy_equals_the_release_on_two_hundred_prompts(family: str) -> None:
    """4 slots: text, images, videos of up to 48 frames with times, several media, several turns."""
    same = _same(Engine.load(random_model(family, context=CONTEXT), slots=4, threads=1), greedy_prompts(family),
                 recorded(family)["greedy"])
    print(f"\nfigure: {family}: greedy tokens against generate of transformers {AUTHORITIES[family]}: "
          f"{sum(same)} of {GREEDY} sequences identical, {sum(same[-LONG:])} of the {LONG} with 16 to 48 frames")
    assert sum(same) >= 0.995 * GREEDY


@pytest.mark.parametrize("family", release.RELEASES)
def test_greedy_equals_the_release_with_a_head_of_its_own(family: str) -> None:
    """As the larger published models have it, and Qwen3-VL with their ViT's heads of 72."""
    directory, conversations = random_model(family, tied=False, context=CONTEXT), greedy_prompts(family)[::4]
    theirs = release.ask(
        AUTHORITIES[family], directory, [messages for messages, _ in conversations], frames_of(conversations),
        max_new_tokens=TOKENS,
    )
    same = _same(Engine.load(directory, slots=4, threads=1), conversations, [one.answer for one in theirs])
    print(f"\nfigure: {family}, untied head: greedy tokens against generate: {sum(same)} of {len(same)} identical")
    assert sum(same) >= 0.995 * len(same)


def _same(engine: Engine, conversations: Sequence[Conversation], expected: Sequence[list[int]]) -> list[bool]:
    """Whether each greedy answer is as expected. All requests are submitted at once."""
    chosen = options(max_new_tokens=TOKENS)
    given = together(engine, [(engine.prepare(*one, chosen), chosen) for one in conversations])
    return [tokens == other for (tokens, _), other in zip(given, expected, strict=True)]
