"""Slots that share their recent rows give the scores of slots that do not, whatever is called in which order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import CONTEXT, PROMPT, Both, open_runners, stand_in

from sailq.worker.runners.kv_cache import BatchedCache, LastRowCache
from sailq.worker.runners.onnx import OnnxRunner
from sailq.worker.runners.sail import SailRunner

SLOTS, RECENT = 4, 4


@pytest.fixture
def sail(tmp_path: Path) -> Any:
    return stand_in(tmp_path)


@pytest.fixture
def runners(sail: Any, tmp_path: Path) -> tuple[SailRunner, OnnxRunner]:
    return open_runners(sail, tmp_path, slots=SLOTS, recent=RECENT)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_calls_gives_the_cpu_runners_scores(seed: int, runners: tuple[SailRunner, OnnxRunner]) -> None:
    """Several prompts at once, answers up to the end of the context, slots that skip steps, and slots used again."""
    in_any_order(Both(runners, seed), np.random.default_rng(seed))


def in_any_order(both: Both, random: np.random.Generator) -> None:
    for _ in range(120):
        free = [slot for slot in range(SLOTS) if slot not in both.lengths]
        full = [slot for slot, length in both.lengths.items() if length == CONTEXT]
        if full or (both.lengths and random.random() < 0.05):
            both.release(full[0] if full else int(random.choice(list(both.lengths))), clear=random.random() < 0.3)
        elif free and random.random() < 0.3:
            some = random.permutation(free)[: int(random.integers(1, len(free) + 1))]
            both.prefill({int(slot): int(random.integers(1, PROMPT // len(some) + 1)) for slot in some})
        elif both.lengths:
            count = len(both.lengths) if random.random() < 0.7 else int(random.integers(1, len(both.lengths) + 1))
            both.decode([int(slot) for slot in random.permutation(list(both.lengths))[:count]])


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_a_step_writes_last_get_to_their_places(seed: int, sail: Any, tmp_path: Path) -> None:
    """As with llm_convert's --batch."""
    both = Both(open_runners(sail, tmp_path, slots=SLOTS, in_place=True), seed)
    assert isinstance(both.runners[0]._cache, LastRowCache)
    in_any_order(both, np.random.default_rng(seed))


def test_cleared_slots_of_that_layout_hold_no_nan(sail: Any, tmp_path: Path) -> None:
    both = Both(open_runners(sail, tmp_path, slots=2, in_place=True), 0)
    both.prefill({0: 5, 1: 5})
    both.decode([0, 1])
    for tensor in (tensor for layer in both.runners[0]._cache.layers for tensor in layer):
        tensor.data[0] = np.nan
    both.release(0, clear=True)
    both.prefill({0: 3})
    for _ in range(4):
        both.decode([0, 1])


def test_an_answer_fills_the_context(runners: tuple[SailRunner, OnnxRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slot 1 skips steps, and slot 3 begins between two flushes, so that their rows have gaps. Their last ones are
    copied one by one into these."""
    packed: list[int] = []
    flush = BatchedCache._flush_packed

    def count(cache: BatchedCache, slot: int, rows: Any) -> None:
        packed.append(slot)
        flush(cache, slot, rows)

    monkeypatch.setattr(BatchedCache, "_flush_packed", count)
    both = Both(runners, 0)
    both.prefill({1: 21})
    both.decode([1])
    both.prefill({3: PROMPT})
    while both.lengths[3] < CONTEXT:
        both.decode([3])
    while both.lengths[1] < CONTEXT:
        both.decode([1])
    assert set(packed) == {1, 3}


def test_cleared_slots_hold_no_nan(runners: tuple[SailRunner, OnnxRunner]) -> None:
    both = Both(runners, 0)
    both.prefill({0: 5, 1: 5})
    both.decode([0, 1])
    cache = runners[0]._cache
    assert isinstance(cache, BatchedCache)
    for tensor in nan_places(cache):
        tensor[...] = np.nan
    both.release(0, clear=True)
    both.prefill({0: 3})
    for _ in range(2 * RECENT):
        both.decode([0, 1])


def nan_places(cache: BatchedCache) -> Iterator[Any]:
    """Slot 0's rows, its own and the recent ones."""
    for own, recent in zip(cache.layers, cache._recent, strict=True):
        for tensor in own:
            yield tensor.data[0]
        for tensor in recent:
            yield tensor.data[:, 0]


def test_a_step_makes_no_views(
    runners: tuple[SailRunner, OnnxRunner], sail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a slot's rows were flushed to the same place."""
    runner = runners[0]
    both = Both(runners, 0)
    both.prefill(dict.fromkeys(range(SLOTS), 5))
    for _ in range(3 * RECENT):
        both.decode(list(range(SLOTS)))
    for slot in range(SLOTS):
        both.release(slot)
    both.prefill(dict.fromkeys(range(SLOTS), 6))
    made: list[Any] = []
    monkeypatch.setattr(sail, "Tensor", lambda **given: made.append(given))
    tokens, places = np.zeros(SLOTS, np.int32), np.zeros((3, SLOTS), np.int32)
    for _ in range(2 * RECENT):
        runner.decode(list(range(SLOTS)), tokens, places)
    assert made == []
