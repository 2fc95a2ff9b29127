"""A runner that computes nothing, so that only the host's work takes time."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sailq.shared.errors import DeviceFailed
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.patches import Grid
from sailq.worker.runners.base import Bytes, Prompt, nothing
from sailq.worker.runners.logits import ChosenTokens, Float, Int


@dataclass(frozen=True)
class Timing:
    """How long a device would take, in seconds: for the vision of one medium, a prefill, a decode step.

    `filling`: for a decode step while a slot is free, where it is not `decode`. If it is long, no answer ends before
    all slots are taken, however slowly the jobs come.
    """

    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    filling: float | None = None


class NullLogits(ChosenTokens):
    """Chosen tokens, and scores that have nothing to do with them."""

    def __init__(self, tokens: Int, scores: Float) -> None:
        super().__init__(tokens)
        self._scores = scores

    def row(self, index: int) -> Float:
        return self._scores


class NullRunner:
    """See `runners.base.Runner`: sleeps as long as its timing says, and answers with a word for each position.

    Args:
        hang_at: the decode call, counted from 1, that never returns.
        fail_at: the decode call at which the device fails.
        flaky: other words each time.
        failing_prompt: tokens from which on a prefill raises RuntimeError.
        deadly_prompt: tokens from which on a prefill kills the process.
        script: tokens of the one answer that it gives instead of words, over and over.
    """

    context, positions, longest_prompt, max_patches, max_side, greedy_only = 2048, 2048, 2047, 2048, None, False

    def __init__(
        self, spec: ModelSpec, slots: int, timing: Timing | None = None, *, hang_at: int = 0, fail_at: int = 0,
        flaky: bool = False, failing_prompt: float = math.inf, deadly_prompt: float = math.inf,
        script: Sequence[int] = (),
    ) -> None:
        self.slots, self.hidden, self._timing = slots, spec.hidden_size, timing or Timing()
        self.device = "null runner"
        self._words = np.array([token for token in range(300, 800) if token not in spec.eos_token_ids], np.int32)
        self._random = np.random.default_rng(0) if flaky else None
        self._scores = np.random.default_rng(0).standard_normal(spec.vocab_size, np.float32)
        self._script, self._begun = np.array(script, np.int32), np.zeros(slots, np.int32)
        self._left, self._until_failure = hang_at, fail_at
        self._failing_prompt, self._deadly_prompt = failing_prompt, deadly_prompt

    def vision(self, media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        self._sleep(self._timing.vision * len(media))
        return [np.zeros((len(pixels) // 4, 1, self.hidden), np.float32) for pixels, _ in media]

    def together(self, lengths: Sequence[int]) -> int:
        return 1

    def prefill(self, prompts: Sequence[Prompt]) -> NullLogits:
        (prompt,) = prompts
        if len(prompt.tokens) >= self._deadly_prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(prompt.tokens) >= self._failing_prompt:
            raise RuntimeError("the device is out of memory")
        self._sleep(self._timing.prefill)
        self._begun[prompt.slot] = prompt.positions[0, -1]
        return self._chosen([prompt.slot], prompt.positions[0, -1:])

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> NullLogits:
        meanwhile()
        self._left -= 1
        self._until_failure -= 1
        if not self._until_failure:
            raise DeviceFailed("SAIL failed to run block_cache_0: SailEngineError: Engine related error!")
        full = len(slots) == self.slots or self._timing.filling is None
        self._sleep(1e6 if not self._left else self._timing.decode if full else self._timing.filling)
        return self._chosen(slots, positions[0])

    def release(self, slot: int) -> None:
        pass

    def clear(self, slot: int) -> None:
        pass

    def readings(self) -> None:
        pass

    def _chosen(self, slots: Sequence[int], places: Int) -> NullLogits:
        words = self._words[places % len(self._words)]
        if len(self._script):
            words = self._script[(places - self._begun[slots]) % len(self._script)]
        if self._random is not None:
            words = self._random.choice(self._words, len(places))
        return NullLogits(words, self._scores)

    @staticmethod
    def _sleep(seconds: float) -> None:
        if seconds:
            time.sleep(seconds)
