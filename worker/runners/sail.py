"""Runs bmodels on a BM1684X with SAIL, in every layout that `runners.layout` knows.

Where other runtimes raise, SAIL kills the process or corrupts memory. So the file is checked before it is loaded, and
every argument before a call. The behaviour of SAIL 3.10.7 was read in its sources; `chip` names the lines.
`runners.emulator` behaves the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sailq.shared.errors import DeviceFailed, TooLong, Unsupported

from ..engine.model import ModelSpec
from ..model_files.bmodel import read_bmodel
from .base import Bytes
from .checks import check_pixels, check_prompt, check_step
from .chip import Chip, count_tpus
from .kv_cache import open_cache
from .layout import read_layout
from .logits import UNUSABLE, Choose, ChosenTokens, DeviceLogits, Float, Int, Logits
from .runner_memory import HeadMemory, PromptMemory, StepMemory, VisionMemory
from .sensors import Readings, read


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
        self._vision = VisionMemory(layout, self._chip)
        self._prompt = PromptMemory(layout, self._chip)
        self._step = StepMemory(layout, self._chip)
        self._head = HeadMemory(layout, self._chip)
        self._ends = self._chip.view(self._step.last, self._head.shape)
        self._cache = open_cache(layout, self._chip, self._step)

    def vision(self, pixels: Bytes, grid: tuple[int, int, int]) -> Float:
        """One call for each temporal grid, at the smallest size that holds it, or at its own on a dynamic net."""
        t, h, w = grid
        check_pixels(self._spec, pixels, grid, self.max_patches, self.max_side)
        family, used = self._spec.family, h * w
        size = used if self._layout.dynamic_vision else _smallest(self._layout.patches, used)
        values = np.zeros((size, family.patch_dim), np.float32)
        others = family.vit_inputs(h, w, size)
        tensors = self._vision.inputs([values.shape, *(other.shape for other in others)])
        for tensor, other in zip(tensors[1:], others, strict=True):
            self._chip.write(tensor, other)
        embeds = []
        for patches in pixels.reshape(t, used, -1):
            values[:used] = patches if self._layout.raw_pixels else family.pixel_values(patches)
            self._chip.write(tensors[0], values)
            self._chip.run("vit", tensors, [self._vision.embeds])
            embeds.append(self._chip.read(self._vision.embeds)[: family.vision_tokens((1, h, w))])
        return np.concatenate(embeds)

    def prefill(self, slot: int, tokens: Int, positions: Int, vision: Float, places: Int) -> Logits:
        """See `base.Runner.prefill`. Runs at the smallest length that holds the prompt, or at the prompt's own on
        dynamic nets. With history nets a long prompt is prefilled in parts."""
        check_prompt(self._spec, self.slots, self.context, slot, tokens, positions, vision, places)
        length = len(tokens)
        if length > self.longest_prompt:
            raise TooLong(f"The prompt has {length} tokens; this worker's limit is {self.longest_prompt}.")
        self._lengths[slot] = 0
        most = self._layout.prompts[-1]
        for start in range(0, length, most):
            part = slice(start, min(start + most, length))
            inside = (places >= part.start) & (places < part.stop)
            self._embed(tokens[part], vision[inside], places[inside] - start)
            self._prefill_part(slot, start, positions[:, part])
        self._lengths[slot] = length
        self._cache.fill(slot, length)
        last = length - 1 - start
        first = max(0, last + 1 - self.slots)  # lm_head takes as many rows as slots: the prompt's last ones
        ends = self._chip.view(self._prompt.hidden, self._head.shape, first * self.hidden)
        # The host samples the first token: it checks all scores, so it finds a broken row of lm_head's weights.
        return self._logits(ends, [last - first], None)

    def decode(self, slots: Sequence[int], tokens: Int, positions: Int) -> Logits:
        """See `base.Runner.decode`. Copies only tokens, positions and a mask to the device. Slots that are not in
        `slots` are computed too, and their output is dropped."""
        rows, lengths = check_step(self._spec, self._lengths, self.context, slots, tokens, positions)
        step, chip = self._step, self._chip
        ids, places = np.zeros(self.slots, np.int32), np.zeros((3, self.slots), np.int32)
        ids[rows], places[:, rows] = tokens, positions
        chip.write(step.ids, ids)
        chip.write(step.positions, places)
        layers = self._cache.step(rows, lengths)
        chip.run_all([step.embed, *layers])
        self._lengths[rows] += 1
        return self._logits(self._ends, list(slots), self._choose if self._layout.greedy_head else None)

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

    def _embed(self, tokens: Int, vision: Float, places: Int) -> None:
        """Write the hidden states of a part of a prompt to the first rows of `self._prompt.hidden`."""
        prompt, chip = self._prompt, self._chip
        size = _smallest(self._layout.prompts, len(tokens))
        ids = chip.view(prompt.ids, [1, size])
        chip.write(ids, np.pad(tokens, (0, size - len(tokens))))
        chip.run("embedding", [ids], [chip.view(prompt.hidden, [1, size, self.hidden])])
        for start, rows in _runs(vision, places):
            chip.write(chip.view(prompt.hidden, list(rows.shape), start * self.hidden), rows)

    def _prefill_part(self, slot: int, start: int, positions: Int) -> None:
        """Run the blocks over `self._prompt.hidden`; its keys and values are stored after the slot's first `start`
        rows. A dynamic net writes as many rows as it reads, but needs outputs of its largest size."""
        layout, chip, prompt = self._layout, self._chip, self._prompt
        used = positions.shape[1]
        size = used if layout.dynamic_prompt else _smallest(layout.prompts, used)
        name = "block_kv" if start else "block"
        stage = layout.stage(f"{name}_0", size)
        places = chip.view(prompt.positions, [*stage.inputs[1].shape[:-1], size])
        chip.write(places, np.pad(positions, ((0, 0), (0, size - used))))
        masks = [prompt.masks[size]] if layout.masked else []
        for index, caches in enumerate(self._cache.layers):
            rows = [chip.view(cache, stage.outputs[1].shape, self._cache.start(slot, start)) for cache in caches]
            past = self._history(f"{name}_{index}", caches, slot, start) if start else []
            hidden = chip.view(prompt.hidden, [1, size, self.hidden])
            made = chip.view(prompt.other, stage.outputs[0].shape)
            chip.run(f"{name}_{index}", [hidden, places, *masks, *past], [made, *rows])
            prompt.hidden, prompt.other = prompt.other, prompt.hidden

    def _history(self, net: str, caches: list[Any], slot: int, used: int) -> list[Any]:
        """Copy the first `used` rows of a slot's keys and values into the net's own inputs. The net reads them only
        there, and runs of other nets overwrite them."""
        own = self._chip.shared_inputs(net)
        views = []
        for index, cache in zip((2, 3), caches, strict=True):
            rows = self._chip.view(own[index], [1, used, *own[index].shape()[2:]])
            self._chip.copy(cache, self._cache.start(slot, 0), rows, 0, used * self._layout.row)
            views.append(rows)
        return views

    def _logits(self, hidden: Any, rows: Sequence[int], choose: Choose | None) -> Logits:
        """Run lm_head on a row for each slot. `rows`: the indices of the rows that are used. One run reads the weights
        once."""
        head = self._head
        self._chip.run("lm_head", [hidden], [head.scores])
        if not self.greedy_only:
            return DeviceLogits(self._chip, head.scores, rows, self._spec.vocab_size, choose)
        tokens = self._chip.read(head.scores).reshape(-1)[rows]
        known = (tokens >= 0) & (tokens < self._spec.vocab_size)
        finite = np.isfinite(self._chip.read(hidden).reshape(self.slots, -1)[rows]).all(axis=1)
        return ChosenTokens(np.where(known & finite, tokens, UNUSABLE).astype(np.int32))

    def _choose(self) -> tuple[Int, Float | None]:
        """The argmax of each row of the last lm_head, int32 [slots], and the sum of its scores, float32 [slots], if the
        file computes it."""
        head = self._head
        self._chip.run("greedy_head", [head.scores], head.chosen)
        tokens, *sums = (self._chip.read(chosen).reshape(-1) for chosen in head.chosen)
        return tokens, sums[0] if sums else None


def _smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest of increasing sizes that holds `needed`."""
    return next(size for size in sizes if size >= needed)


def _runs(vision: Float, places: Int) -> Iterator[tuple[int, Float]]:
    """(first place, rows) of each unbroken run of places."""
    if len(places):
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
            yield int(places[run[0]]), vision[run]
