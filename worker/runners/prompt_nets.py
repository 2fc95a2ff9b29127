"""The prefill of a bmodel: prompts that share launches, where their keys and values go, and its tensors, allocated
once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..engine.model import ModelSpec
from .base import Prompt
from .chip import Chip
from .inputs import causal_mask
from .layout import Layout
from .logits import Float, Int
from .packing import smallest


class PromptNets:
    """Prefills prompts. Each length has a mask of its own, which is written when the places of its prompts change.

    The net `add` adds further vision features to the hidden states after each of the first layers (deepstack). It adds
    zeros to the other tokens.

    Args:
        caches: the keys and the values of each layer, for all slots.
        start: the index of the cache element at which a row of a slot begins.
    """

    def __init__(
        self, layout: Layout, chip: Chip, spec: ModelSpec, caches: Sequence[list[Any]], start: Callable[[int, int], int]
    ) -> None:
        self._layout, self._chip, self._caches, self._start = layout, chip, caches, start
        self._width, self._row = spec.hidden_size, layout.row
        most = layout.prompts[-1]
        block = layout.stage("block_0", most)
        self._ids = chip.new(layout.stage("embedding", most).inputs[0])
        self._hidden, self._other = (chip.new(block.inputs[0]) for _ in range(2))
        self._positions = chip.new(block.inputs[1])
        sizes = layout.prompts if layout.masked else ()
        self._masks = {size: chip.new(layout.stage("block_0", size).inputs[2]) for size in sizes}
        self._written: dict[int, tuple[int, Sequence[int]]] = {}
        self._views: dict[int, Any] = {}
        self._features = chip.new(layout.adding(most).inputs[1]) if layout.deepstack else None
        """What `add` adds."""
        self._featured: list[tuple[int, int]] = []
        """(first row, rows) of the parts of `_features` that are not zeros."""

    def prefill(self, prompts: Sequence[Prompt], ends: Any, row: int) -> None:
        """Prefill prompts in one launch of each net, at the smallest length that holds them, or at a prompt's own on
        dynamic nets. With history nets a long prompt is prefilled in parts.

        Args:
            prompts: one, or as many as a launch of a static net with a mask holds.
            ends: gets the hidden states of the prompts' last tokens, from `row` on.
        """
        slots, bounds = [prompt.slot for prompt in prompts], np.cumsum([0, *(len(prompt.tokens) for prompt in prompts)])
        tokens = np.concatenate([prompt.tokens for prompt in prompts])
        positions = np.concatenate([prompt.positions for prompt in prompts], axis=1)
        vision = np.concatenate([prompt.vision for prompt in prompts])
        places = np.concatenate([prompt.places + first for prompt, first in zip(prompts, bounds, strict=False)])
        most = self._layout.prompts[-1]
        for start in range(0, len(tokens), most):
            part = slice(start, min(start + most, len(tokens)))
            inside = (places >= part.start) & (places < part.stop)
            features, at = vision[inside], places[inside] - start
            self._embed(tokens[part], features[:, 0], at)
            self._run_blocks(slots, bounds.tolist(), start, positions[:, part], features[:, 1:], at)
        for index, end in enumerate(bounds[1:].tolist(), row):
            self._chip.copy(self._hidden, (end - 1 - start) * self._width, ends, index * self._width, self._width)

    def _embed(self, tokens: Int, vision: Float, places: Int) -> None:
        """Write the hidden states of a part of a prompt to the first rows of `self._hidden`."""
        chip, size = self._chip, smallest(self._layout.prompts, len(tokens))
        ids = chip.view(self._ids, [1, size])
        chip.write(ids, np.pad(tokens, (0, size - len(tokens))))
        chip.run("embedding", [ids], [chip.view(self._hidden, [1, size, self._width])])
        for start, rows in _runs(vision, places):
            chip.write(chip.view(self._hidden, list(rows.shape), start * self._width), rows)

    def _run_blocks(
        self, slots: Sequence[int], bounds: Sequence[int], start: int, positions: Int, features: Float, places: Int
    ) -> None:
        """Run the blocks over `self._hidden`. A net stores all its keys and values in the first prompt's slot, after
        the slot's first `start` rows. The rows of other prompts lie where no mask shows them, and are copied to their
        own slots. A dynamic net writes as many rows as it reads, but needs outputs of its largest size.

        Args:
            bounds: the first row of each prompt in `self._hidden`, and the end of the last.
            features: float32 [V, D, H], what is added to the rows `places` after each of the first D blocks.
        """
        layout, chip, used = self._layout, self._chip, positions.shape[1]
        size = used if layout.dynamic_prompt else smallest(layout.prompts, used)
        name = "block_kv" if start else "block"
        stage = layout.stage(f"{name}_0", size)
        turns = chip.view(self._positions, [*stage.inputs[1].shape[:-1], size])
        chip.write(turns, np.pad(positions, ((0, 0), (0, size - used))))
        masks = [self._mask(size, bounds[:-1])] if layout.masked else []
        for index, caches in enumerate(self._caches):
            rows = [chip.view(cache, stage.outputs[1].shape, self._start(slots[0], start)) for cache in caches]
            past = self._history(f"{name}_{index}", caches, slots[0], start) if start else []
            hidden = chip.view(self._hidden, [1, size, self._width])
            made = chip.view(self._other, stage.outputs[0].shape)
            chip.run(f"{name}_{index}", [hidden, turns, *masks, *past], [made, *rows])
            for slot, first, end in zip(slots[1:], bounds[1:], bounds[2:], strict=False):
                for made_rows, cache in zip(rows, caches, strict=True):
                    length = (end - first) * self._row
                    chip.copy(made_rows, first * self._row, cache, self._start(slot, 0), length)
            self._hidden, self._other = self._other, self._hidden
            if index < features.shape[1] and len(places):
                self._add(size, features[:, index], places)

    def _add(self, size: int, features: Float, places: Int) -> None:
        """Add features, float32 [V, H], to the rows `places` of the first `size` of `self._hidden`."""
        chip, width = self._chip, self._width
        runs = list(_runs(features, places))
        written = [(start, len(rows)) for start, rows in runs]
        if written != self._featured:
            for start, count in self._featured:
                chip.write(chip.view(self._features, [count, width], start * width), np.zeros((count, width)))
            self._featured = written
        for start, rows in runs:
            chip.write(chip.view(self._features, list(rows.shape), start * width), rows)
        shape = self._layout.adding(size).inputs[0].shape
        inputs = [chip.view(tensor, shape) for tensor in (self._hidden, self._features)]
        chip.run("add", inputs, [chip.view(self._other, shape)])
        self._hidden, self._other = self._other, self._hidden

    def _mask(self, size: int, starts: Sequence[int]) -> Any:
        """The mask of `size` tokens for prompts that begin at `starts`, in the memory of the length that holds them."""
        length = smallest(self._layout.prompts, size)
        if self._written.get(length) != (size, starts):
            mask = self._masks[length]
            self._views[length] = self._chip.view(mask, [*mask.shape()[:-2], size, size])
            self._chip.write(self._views[length], causal_mask(starts, size))
            self._written[length] = size, starts
        return self._views[length]

    def _history(self, net: str, caches: list[Any], slot: int, used: int) -> list[Any]:
        """Copy the first `used` rows of a slot's keys and values into the net's own inputs. The net reads them only
        there, and runs of other nets overwrite them."""
        own = self._chip.shared_inputs(net)
        views = []
        for index, cache in zip((2, 3), caches, strict=True):
            rows = self._chip.view(own[index], [1, used, *own[index].shape()[2:]])
            self._chip.copy(cache, self._start(slot, 0), rows, 0, used * self._row)
            views.append(rows)
        return views


def _runs(vision: Float, places: Int) -> Iterator[tuple[int, Float]]:
    """(first place, rows) of each unbroken run of places."""
    if len(places):
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
            yield int(places[run[0]]), vision[run]
