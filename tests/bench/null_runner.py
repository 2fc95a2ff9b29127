"""A runner that computes nothing: what is left is what the host costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sailq.worker.engine.model import ModelSpec
from sailq.worker.runners.base import Bytes, Float, Int
from sailq.worker.runners.logits import ChosenTokens


@dataclass(frozen=True)
class Timing:
    """How long a device would take, in seconds: for the vision of one medium, a prefill, a decode step."""

    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class NullRunner:
    """See `runners.base.Runner`: sleeps as long as its timing says, and answers with words that mean nothing."""

    context, longest_prompt, max_patches, greedy_only = 2048, 2047, 2048, False

    def __init__(self, spec: ModelSpec, slots: int, timing: Timing | None = None) -> None:
        self.slots, self.hidden, self._timing = slots, spec.hidden_size, timing or Timing()
        self.device = "null runner"
        self._words = [token for token in range(300, 800) if token not in spec.eos_token_ids]
        self._random = np.random.default_rng(0)

    def vision(self, pixels: Bytes, grid: tuple[int, int, int]) -> Float:
        self._sleep(self._timing.vision)
        return np.zeros((len(pixels) // 4, self.hidden), np.float32)

    def prefill(self, slot: int, tokens: Int, positions: Int, vision: Float, places: Int) -> ChosenTokens:
        self._sleep(self._timing.prefill)
        return self._chosen(1)

    def decode(self, slots: Sequence[int], tokens: Int, positions: Int) -> ChosenTokens:
        self._sleep(self._timing.decode)
        return self._chosen(len(slots))

    def release(self, slot: int) -> None:
        pass

    def _chosen(self, count: int) -> ChosenTokens:
        return ChosenTokens(self._random.choice(self._words, count).astype(np.int32))

    @staticmethod
    def _sleep(seconds: float) -> None:
        if seconds:
            time.sleep(seconds)
