"""Runs bmodels on a BM1684X with SAIL, in every layout that `runners.layout` knows.

Where other runtimes raise, SAIL kills the process or corrupts memory. So the file is checked before it is loaded, and
every argument before a call. The behaviour of SAIL 3.10.7 was read in its sources; `chip` names the lines.
`runners.emulator` behaves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sailq.shared.errors import DeviceFailed, TooLong, Unsupported

from ..engine.model import ModelSpec
from ..engine.patches import Grid
from ..model_files.bmodel import read_bmodel
from .base import Bytes, Prompt, nothing
from .checks import check_media, check_prompts, check_step
from .chip import Chip, Run, count_tpus
from .kv_cache import open_cache
from .layout_checks import read_layout
from .logits import UNUSABLE, Choose, ChosenTokens, DeviceLogits, Float, Int, Logits
from .packing import prompts_together
from .prompt_nets import PromptNets
from .runner_memory import HeadMemory, SlotNet, StepMemory
from .sensors import Readings, read
from .vision_nets import VisionNets


class SailRunner:
    """See `base.Runner`. `kv_cache` says where the cache is.

    Args:
        sail: the module `sophon.sail`, or one that offers the same, such as `runners.emulator`.
        tpu: the number of the device.
        slots: number of slots that the file must have; None: any number.

    Raises:
        Unsupported: no such device, the file cannot be loaded, or its nets are not those of `spec`.
    """

    def __init__(self, spec: ModelSpec, bmodel: Path, sail: Any, *, tpu: int = 0, slots: int | None = None) -> None:
        self._layout = layout = read_layout(read_bmodel(bmodel), spec)
        if slots not in (None, layout.slots):
            raise Unsupported(f"{bmodel} has {layout.slots} slots, not {slots}: compile.sh --batch sets them.")
        self._spec, self._sail, self._tpu = spec, sail, tpu
        self.slots, self.hidden = layout.slots, spec.hidden_size
        self.context, self.longest_prompt = layout.context, layout.longest_prompt
        self.positions = layout.positions
        self.max_patches, self.max_side, self.greedy_only = layout.patches[-1], layout.side, layout.chooses
        self.device = f"{getattr(sail, 'DEVICE', 'BM1684X')}, device {tpu}"
        self._lengths = np.zeros(self.slots, np.int32)
        try:
            self._load(bmodel)
        except DeviceFailed as error:
            raise Unsupported(f"{bmodel} cannot be loaded: {error}") from error

    def _load(self, bmodel: Path) -> None:
        """Load the file and allocate all memory that the runner will use."""
        layout, there = self._layout, count_tpus(self._sail)
        if self._tpu >= there:
            raise Unsupported(f"There is no TPU {self._tpu}: this machine has {there}, numbered from 0.")
        self._chip = Chip(self._sail, self._tpu, bmodel)
        self._vision = VisionNets(layout, self._chip, self._spec.family)
        self._step = StepMemory(layout, self._chip)
        self._head = HeadMemory(layout, self._chip, self._step.last)
        self._cache = open_cache(layout, self._chip, self._step)
        self._prompt = PromptNets(layout, self._chip, self._spec, self._cache.layers, self._cache.start)

    def vision(self, media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        """See `base.Runner.vision`."""
        check_media(self._spec, media, self.max_patches, self.max_side)
        return self._vision.encode(media)

    def together(self, lengths: Sequence[int]) -> int:
        """See `base.Runner.together`. More than one only where a mask can separate prompts in a static net."""
        layout = self._layout
        shared = layout.masked and not layout.dynamic_prompt and not layout.history
        return prompts_together(lengths, layout.prompts) if shared else 1

    def prefill(self, prompts: Sequence[Prompt]) -> Logits:
        """See `base.Runner.prefill`. As many prompts as `together` says share a launch of each net. The mask does not
        stop values that are not finite: after these, the slots are cleared, and each prompt runs alone."""
        check_prompts(self._spec, self.slots, self.context, self.positions, prompts)
        lengths = [len(prompt.tokens) for prompt in prompts]
        if max(lengths) > self.longest_prompt:
            raise TooLong(f"The prompt has {max(lengths)} tokens; this worker's limit is {self.longest_prompt}.")
        slots, done = [prompt.slot for prompt in prompts], 0
        self._lengths[slots] = 0
        while done < len(prompts):
            count = self.together(lengths[done:])
            self._prompt.prefill(prompts[done : done + count], self._head.ends, done)
            if count > 1 and not self._finite(done, count):
                for index in range(done, done + count):
                    self.clear(prompts[index].slot)
                    self._prompt.prefill(prompts[index : index + 1], self._head.ends, index)
            done += count
        self._lengths[slots] = lengths
        for slot, length in zip(slots, lengths, strict=True):
            self._cache.fill(slot, length)
        # The host samples the first token: it checks all scores, so it finds a broken row of lm_head's weights.
        head = self._head
        return self._logits(head.of_ends, head.ends, range(len(prompts)), None)

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> Logits:
        """See `base.Runner.decode`. Copies only tokens, positions and a mask to the device. Slots that are not in
        `slots` are computed too, and their output is dropped."""
        rows, lengths = check_step(
            self._spec, self._lengths, self.context, self.positions, slots, tokens, positions
        )
        step, chip, head = self._step, self._chip, self._head
        ids, places = np.zeros(self.slots, np.int32), np.zeros((3, self.slots), np.int32)
        ids[rows], places[:, rows] = tokens, positions
        step.write(ids, places)
        layers = self._cache.step(rows, lengths)
        chip.run_all(step.embed.runs(slots))
        meanwhile()
        chip.run_all(layers)
        self._cache.store(rows, lengths)
        self._lengths[rows] += 1
        choose = None if head.choose is None else partial(self._choose, head.choose.runs(slots))
        return self._logits(head.of_last, head.last, list(slots), choose)

    def release(self, slot: int) -> None:
        """See `base.Runner.release`."""
        self._lengths[slot] = 0
        self._cache.release(slot)

    def clear(self, slot: int) -> None:
        """See `base.Runner.clear`."""
        self._lengths[slot] = 0
        self._cache.clear(slot)

    def readings(self) -> Readings | None:
        """See `base.Runner.readings`."""
        return read(self._sail, self._tpu)

    def _finite(self, row: int, count: int) -> bool:
        """Whether so many rows of `self._head.ends` are finite."""
        ends = self._chip.view(self._head.ends, [count, self.hidden], row * self.hidden)
        return bool(np.isfinite(self._chip.read(ends)).all())

    def _logits(self, net: SlotNet, hidden: Any, rows: Sequence[int], choose: Choose | None) -> Logits:
        """Run lm_head on rows of `hidden`."""
        scores = self._head.scores
        self._chip.run_all(net.runs(rows))
        if not self.greedy_only:
            return DeviceLogits(self._chip, scores, rows, self._spec.vocab_size, choose)
        tokens = self._chip.read(scores).reshape(-1)[rows]
        known = (tokens >= 0) & (tokens < self._spec.vocab_size)
        finite = np.isfinite(self._chip.read(hidden).reshape(self.slots, -1)[rows]).all(axis=1)
        return ChosenTokens(np.where(known & finite, tokens, UNUSABLE).astype(np.int32))

    def _choose(self, runs: Sequence[Run]) -> tuple[Int, Float | None]:
        """The argmax of each row that these runs of greedy_head compute, int32 [slots], and the sum of its scores,
        float32 [slots], if the file computes it."""
        self._chip.run_all(runs)
        tokens, *sums = (self._chip.read(chosen).reshape(-1) for chosen in self._head.chosen)
        return tokens, sums[0] if sums else None
