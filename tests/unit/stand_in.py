"""The SAIL runner on the box tests' stand-in, whose nets are the CPU runner's, beside that runner."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401 (the stand-in takes the loaded module)
from bmodel_files import last_row, of_family, qwen2_vl, write_bmodel
from qwen2vl import random_model

from sailq.worker.engine.model import ModelSpec
from sailq.worker.runners.base import Prompt
from sailq.worker.runners.logits import Int, Logits
from sailq.worker.runners.onnx import OnnxRunner
from sailq.worker.runners.sail import SailRunner

CONTEXT, PROMPT = 48, 32
ORDINARY = 500
"""The prompts' tokens are below it."""


def stand_in(folder: Path) -> Any:
    """The module `sophon.sail`, without a box's device files."""
    spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parents[1] / "box/sail.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Handle = lambda tpu_id: None
    module.FAULT = folder / "fault"
    module.FAULT.write_text("")
    return module


def open_runners(
    sail: Any, folder: Path, *, slots: int = 1, recent: int = 16, dynamic: bool = False, in_place: bool = False,
    family: str = "qwen2_vl", lengths: tuple[int, ...] = (PROMPT,), flat: bool = False,
) -> tuple[SailRunner, OnnxRunner]:
    """Both with as many slots.

    Args:
        dynamic: prompts are prefilled at their real length.
        in_place: a step writes its rows into the last of each slot, as with llm_convert's --batch.
        lengths: at which prompts are prefilled.
        flat: `add` has one length and one dimension, as llm_convert's.
    """
    model = ModelSpec.load(random_model(family))
    (folder / "onnx").symlink_to(model.directory / "onnx")
    nets = qwen2_vl(layers=model.layers, slots=1 if in_place else slots, context=CONTEXT, recent=recent,
                    prompts=lengths, hidden=model.hidden_size, row=(model.kv_heads, model.head_dim),
                    vocabulary=model.vocab_size, dtype="f32")
    nets = last_row(nets, slots) if in_place else nets
    nets = of_family(nets, family, hidden=model.hidden_size, lengths=lengths[-1:] if flat else lengths, flat=flat,
                     dtype="f32")
    if dynamic:
        nets = [replace(net, dynamic=net.name.startswith("block_") and "cache" not in net.name) for net in nets]
    file = write_bmodel(folder / "a.bmodel", nets)
    return SailRunner(model, file, sail), OnnxRunner(model, slots=slots, threads=1)


class Both:
    """Calls both runners and compares the scores."""

    def __init__(self, runners: tuple[SailRunner, OnnxRunner], seed: int) -> None:
        self.runners, self.random = runners, np.random.default_rng(seed)
        self._deepstack = runners[0]._layout.deepstack
        self.lengths: dict[int, int] = {}

    def prompts(self, lengths: dict[int, int], vision: float = 0) -> list[Prompt]:
        """Random ones of these lengths, by slot. `vision`: the share of their tokens that are vision tokens."""
        made = []
        for slot, length in lengths.items():
            places = np.flatnonzero(self.random.random(length) < vision).astype(np.int32)
            shape = len(places), 1 + self._deepstack, self.runners[0].hidden
            features = self.random.normal(0, 0.5, shape).astype(np.float32)
            positions = np.tile(np.arange(length, dtype=np.int32), (3, 1))
            made.append(Prompt(slot, self._tokens(length), positions, features, places))
        return made

    def prefill(self, lengths: dict[int, int], vision: float = 0) -> None:
        """Lengths of prompts by slot; `vision`: see `prompts`."""
        prompts = self.prompts(lengths, vision)
        self._same(*(runner.prefill(prompts) for runner in self.runners), rows=range(len(prompts)))
        self.lengths |= lengths

    def prefill_beside(self, prompts: Sequence[Prompt], bad: int) -> Any:
        """Prefill prompts, of which the SAIL runner cannot answer the one with the index `bad`. Returns its scores."""
        logits = [runner.prefill(prompts) for runner in self.runners]
        row = logits[0].row(bad).copy()
        self._same(*logits, rows=[index for index in range(len(prompts)) if index != bad])
        self.lengths |= {prompt.slot: len(prompt.tokens) for prompt in prompts}
        return row

    def decode(self, slots: list[int]) -> None:
        places = np.tile(np.array([self.lengths[slot] for slot in slots], np.int32), (3, 1))
        tokens = self._tokens(len(slots))
        self._same(*(runner.decode(slots, tokens, places) for runner in self.runners), rows=range(len(slots)))
        for slot in slots:
            self.lengths[slot] += 1

    def release(self, slot: int, clear: bool = False) -> None:
        for runner in self.runners:
            (runner.clear if clear else runner.release)(slot)
        del self.lengths[slot]

    def _tokens(self, count: int) -> Int:
        return self.random.integers(0, ORDINARY, count).astype(np.int32)

    @staticmethod
    def _same(one: Logits, other: Logits, rows: Sequence[int]) -> None:
        for row in rows:
            np.testing.assert_allclose(one.row(row), other.row(row), rtol=1e-3, atol=1e-3)
