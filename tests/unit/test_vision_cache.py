"""Vision tokens are computed once, kept within the cache's limit, and give the same answers as new ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from asking import answer
from qwen2vl import Prompts, options, random_model

from sailq.shared.errors import BadMedia
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.vision_cache import VisionCache, key_of

CHOSEN = options(max_new_tokens=12)


@pytest.fixture
def engine() -> Engine:
    return Engine.load(random_model(), slots=2, threads=1)


@pytest.fixture
def encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The grids that the runner has encoded."""
    grids: list[Any] = []
    vision = engine.runner.vision

    def count(media: Any) -> Any:
        grids.extend(grid for _, grid in media)
        return vision(media)

    monkeypatch.setattr(engine.runner, "vision", count)
    return grids


def clip(seed: int) -> tuple[FramesPart, dict[str, Frames]]:
    array = Prompts(seed).frames(2, 84, 112)
    part = FramesPart(type="video", blob=f"{seed:064x}", frames=2, height=84, width=112)
    return part, {part.blob: array}


def ask(part: FramesPart, text: str) -> list[Message]:
    return [Message(role="user", content=(part, TextPart(text=text)))]


def tokens(engine: Engine, prepared: PreparedPrompt) -> list[int]:
    return answer(engine, prepared, 0, CHOSEN)


def test_a_second_question_about_a_clip_encodes_nothing_and_needs_no_frames(
    engine: Engine, encoded: list[Any]
) -> None:
    part, frames = clip(1)
    first = tokens(engine, engine.prepare(ask(part, "What?"), frames, CHOSEN))
    media = engine.media(ask(part, "What?"))
    assert media.wanted == {}
    assert tokens(engine, engine.prepare(ask(part, "What?"), {}, CHOSEN, media)) == first
    other = tokens(engine, engine.prepare(ask(part, "How many?"), {}, CHOSEN))
    assert encoded == [(1, 6, 8)]
    fresh = Engine.load(random_model(), slots=1, threads=1, vision_cache_bytes=0)
    assert tokens(fresh, fresh.prepare(ask(part, "How many?"), frames, CHOSEN)) == other


def test_jobs_prepared_together_encode_their_common_clip_once(engine: Engine, encoded: list[Any]) -> None:
    part, frames = clip(2)
    both = [engine.prepare(ask(part, text), frames, CHOSEN) for text in ("What?", "How many?")]
    for prepared in both:
        tokens(engine, prepared)
    assert len(encoded) == 1


def test_a_call_has_as_many_media_as_take_little_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small media share a call. A clip with more grids than that has a call of its own."""
    calls: list[list[int]] = []
    vision = engine.runner.vision

    def count(media: Any) -> Any:
        calls.append([t for _, (t, _, _) in media])
        return vision(media)

    monkeypatch.setattr(engine.runner, "vision", count)
    frames, parts = {}, []
    for seed, length in enumerate((2, 30, 36, 70, 2, 4)):
        blob = f"{seed:064x}"
        frames[blob] = Prompts(seed).frames(length, 28, 28)
        parts.append(FramesPart(type="video", blob=blob, frames=length, height=28, width=28))
    messages = [Message(role="user", content=(*parts, TextPart(text="What?")))]
    tokens(engine, engine.prepare(messages, frames, CHOSEN))
    assert calls == [[1, 15], [18], [35], [1, 2]]


def test_a_request_keeps_its_embedding_if_the_cache_evicts_it(engine: Engine, encoded: list[Any]) -> None:
    part, frames = clip(3)
    first = tokens(engine, engine.prepare(ask(part, "What?"), frames, CHOSEN))
    media = engine.media(ask(part, "What?"))
    engine.vision_cache.__init__(0)  # type: ignore[misc]
    assert tokens(engine, engine.prepare(ask(part, "What?"), {}, CHOSEN, media)) == first
    with pytest.raises(BadMedia):
        engine.prepare(ask(part, "What?"), {}, CHOSEN)


def test_another_size_under_the_same_digest_is_another_medium(engine: Engine, encoded: list[Any]) -> None:
    part, frames = clip(4)
    tokens(engine, engine.prepare(ask(part, "What?"), frames, CHOSEN))
    lying = part.model_copy(update={"height": 112, "width": 84})
    assert engine.media(ask(lying, "What?")).wanted == {part.blob: lying}
    with pytest.raises(BadMedia, match="not those"):
        engine.prepare(ask(lying, "What?"), frames, CHOSEN)


def test_the_cache_evicts_the_least_recently_used_entry() -> None:
    cache, one = VisionCache(3 * 400), np.zeros((10, 10), np.float32)
    keys = [key_of(clip(seed)[0]) for seed in range(4)]
    for key in keys[:3]:
        cache.put(key, one)
    assert cache.get(keys[0]) is one  # so that the second is now the oldest
    cache.put(keys[3], one)
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
    cache.put(keys[1], np.zeros((31, 10), np.float32))  # larger than the cache: it evicts nothing
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
