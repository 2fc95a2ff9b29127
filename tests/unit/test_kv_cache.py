"""Slots that share their recent rows give the scores of slots that do not, whatever is called in which order.

The SAIL runner runs on the box tests' stand-in, whose nets are the CPU runner's, so that both compute the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401 (the stand-in takes the loaded module)
import pytest
from bmodel_files import qwen2_vl, write_bmodel
from qwen2vl import random_model

from sailq.worker.engine.model import ModelSpec
from sailq.worker.runners.base import Prompt
from sailq.worker.runners.kv_cache import BatchedCache
from sailq.worker.runners.logits import Int, Logits
from sailq.worker.runners.onnx import OnnxRunner
from sailq.worker.runners.sail import SailRunner

SLOTS, CONTEXT, RECENT, PROMPT = 4, 48, 4, 32


@pytest.fixture
def sail(tmp_path: Path) -> ModuleType:
    """The stand-in, without a box's device files."""
    spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parents[1] / "box/sail.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Handle = lambda tpu_id: None  # type: ignore[attr-defined]
    module.FAULT = tmp_path / "fault"  # type: ignore[attr-defined]
    module.FAULT.write_text("")
    return module


@pytest.fixture
def runners(sail: ModuleType, tmp_path: Path) -> tuple[SailRunner, OnnxRunner]:
    model = ModelSpec.load(random_model())
    (tmp_path / "onnx").symlink_to(model.directory / "onnx")
    nets = qwen2_vl(layers=model.layers, slots=SLOTS, context=CONTEXT, recent=RECENT, prompts=(PROMPT,),
                    vocabulary=model.vocab_size, dtype="f32")
    file = write_bmodel(tmp_path / "a.bmodel", nets)
    return SailRunner(model, file, sail), OnnxRunner(model, slots=SLOTS, threads=1)


class Both:
    """Calls both runners and compares the scores."""

    def __init__(self, runners: tuple[SailRunner, OnnxRunner], seed: int) -> None:
        self.runners, self.random = runners, np.random.default_rng(seed)
        self.lengths: dict[int, int] = {}

    def prefill(self, lengths: dict[int, int]) -> None:
        """Lengths of prompts by slot."""
        nothing = np.empty((0, self.runners[0].hidden), np.float32), np.empty(0, np.int32)
        prompts = [
            Prompt(slot, self._tokens(length), np.tile(np.arange(length, dtype=np.int32), (3, 1)), *nothing)
            for slot, length in lengths.items()
        ]
        self._same(*(runner.prefill(prompts) for runner in self.runners), rows=len(prompts))
        self.lengths |= lengths

    def decode(self, slots: list[int]) -> None:
        places = np.tile(np.array([self.lengths[slot] for slot in slots], np.int32), (3, 1))
        tokens = self._tokens(len(slots))
        self._same(*(runner.decode(slots, tokens, places) for runner in self.runners), rows=len(slots))
        for slot in slots:
            self.lengths[slot] += 1

    def release(self, slot: int, clear: bool = False) -> None:
        for runner in self.runners:
            (runner.clear if clear else runner.release)(slot)
        del self.lengths[slot]

    def _tokens(self, count: int) -> Int:
        return self.random.integers(0, 500, count).astype(np.int32)

    @staticmethod
    def _same(one: Logits, other: Logits, rows: int) -> None:
        for row in range(rows):
            np.testing.assert_allclose(one.row(row), other.row(row), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_calls_gives_the_cpu_runners_scores(seed: int, runners: tuple[SailRunner, OnnxRunner]) -> None:
    """Several prompts at once, answers up to the end of the context, slots that skip steps, and slots used again."""
    both = Both(runners, seed)
    random = np.random.default_rng(seed)
    for _ in range(120):
        free = [slot for slot in range(SLOTS) if slot not in both.lengths]
        full = [slot for slot, length in both.lengths.items() if length == CONTEXT - 1]
        if full or (both.lengths and random.random() < 0.05):
            both.release(full[0] if full else int(random.choice(list(both.lengths))), clear=random.random() < 0.3)
        elif free and random.random() < 0.3:
            some = random.permutation(free)[: int(random.integers(1, len(free) + 1))]
            both.prefill({int(slot): int(random.integers(1, PROMPT // len(some) + 1)) for slot in some})
        elif both.lengths:
            count = len(both.lengths) if random.random() < 0.7 else int(random.integers(1, len(both.lengths) + 1))
            both.decode([int(slot) for slot in random.permutation(list(both.lengths))[:count]])


def test_an_answer_fills_the_context(runners: tuple[SailRunner, OnnxRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slot 1 skips steps, so that its rows have gaps. Its last ones are copied one by one into these."""
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
    while both.lengths[3] < CONTEXT - 1:
        both.decode([3])
    while both.lengths[1] < CONTEXT - 1:
        both.decode([1])
    assert set(packed) == {1}


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
