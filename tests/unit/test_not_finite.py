"""A score that is NaN or infinite ends only its own answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from asking import answer
from qwen2vl import Prompts, options

from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine, Generation, Start
from sailq.worker.engine.patches import Grid
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.sampling import NotFinite
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.base import Bytes
from sailq.worker.runners.logits import UNUSABLE, Float, HostLogits

VALUES = [np.nan, np.inf, -np.inf]
GREEDY, SAMPLED = options(max_new_tokens=6), options(max_new_tokens=6, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(resolve("sailq-tiny"), slots=2, threads=1)


@pytest.fixture
def prepared(engine: Engine) -> PreparedPrompt:
    return question(engine)


def question(engine: Engine) -> PreparedPrompt:
    """About a clip or an image."""
    prompts = Prompts(0)
    messages, frames = next(one for one in iter(prompts.conversation, None) if one[1])
    return engine.prepare(messages, frames, GREEDY)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", [0, 5, 7])
def test_one_score_that_is_not_finite_invalidates_its_row(value: float, place: int) -> None:
    scores = np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::-1].copy()
    assert HostLogits(scores).argmax().tolist() == [0, 0]
    scores[1, place] = value
    assert HostLogits(scores).argmax().tolist() == [0, UNUSABLE]


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_with_bad_scores_ends_and_its_slot_works_again(
    engine: Engine, prepared: PreparedPrompt, how: GenerationOptions
) -> None:
    alone = answer(engine, prepared, 0, GREEDY)
    broken, other = (engine.start(prepared, how, slot) for slot in (0, 1))
    engine.runner._cache[:, :, 0, :, 3] = np.nan  # type: ignore[attr-defined]
    engine.step([broken, other])
    assert isinstance(broken.error, NotFinite) and other.error is None
    for slot in (0, 1):
        engine.release(slot)
    assert answer(engine, prepared, 0, GREEDY) == alone


def test_vision_tokens_that_are_not_finite_are_not_kept(
    engine: Engine, prepared: PreparedPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Engine.load(resolve("sailq-tiny"), slots=1, threads=1)
    vision, asked = again.runner.vision, question(again)

    def broken(media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        return [embeds * np.float32(np.nan) for embeds in vision(media)]

    with monkeypatch.context() as patch:
        patch.setattr(again.runner, "vision", broken)
        with pytest.raises(NotFinite, match="vision tokens"):
            again.start(asked, GREEDY, 0)
    assert answer(again, asked, 0, GREEDY) == answer(engine, prepared, 0, GREEDY)


def test_one_medium_that_is_not_finite_ends_only_its_own_request(
    engine: Engine, prepared: PreparedPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Engine.load(resolve("sailq-tiny"), slots=3, threads=1)
    prompts = Prompts(3)
    messages, frames = next(one for one in iter(prompts.conversation, None) if one[1])
    asked, other, vision, calls = question(again), again.prepare(messages, frames, GREEDY), again.runner.vision, []

    def broken(media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        calls.append(len(media))
        first, *rest = vision(media)
        return [first * np.float32(np.nan), *rest]

    monkeypatch.setattr(again.runner, "vision", broken)
    bad, good, same = again.start_together([Start(other, GREEDY, 0), Start(asked, GREEDY, 2), Start(asked, GREEDY, 1)])
    assert isinstance(bad, NotFinite) and calls == [len(other.media) + len(asked.media)]
    assert isinstance(good, Generation) and isinstance(same, Generation)
    assert (good.reused, same.reused) == (0, len(asked.media))
    while good.finish_reason is None:
        again.step([good, same])
    assert good.tokens == same.tokens == answer(engine, prepared, 0, GREEDY)
