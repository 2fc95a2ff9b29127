"""The cache of a SAIL runner: what a decode step reads, and where it writes.

All kinds keep the keys and values of a layer in that net's own input memory, because from other memory the runtime
would copy all of them at each step. A step writes its new rows in place: their views are the net's outputs.

A view costs an x86 core 3 µs, and a box's core, assumed 8 times slower, 24. With one slot, a step makes two for each
layer. Several slots would need two for each slot and layer. So their newest rows lie together: a row of `recent`,
[R, slots, heads, dim], has those of one step, and the views of all R rows are made once. After R steps the net `flush`
moves them to the slots' own rows. The order of rows in a cache does not matter: keys contain their positions.

llm_convert's `--batch` has no such nets. A step writes the new row of each slot into the last of the slot's rows, and
two copies for each slot and layer move it to its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from .base import MASKED
from .chip import Chip, Run
from .inputs import past_mask
from .layout import Layout
from .logits import Int
from .packing import smallest
from .runner_memory import StepMemory

_PAST, _RECENT = (3, 4), (5, 6)
"""The indices of block_cache_i's inputs that are the cache: the slots' own rows, and the newest ones of all."""


class Cache(Protocol):
    """The keys and values of all slots.

    Attributes:
        layers: for each layer, its keys and its values: tensors [slots, context, heads, dim].
    """

    layers: list[list[Any]]

    def start(self, slot: int, row: int) -> int:
        """The index of the element at which a row of a slot begins in the tensors of `layers`."""

    def fill(self, slot: int, length: int) -> None:
        """Note that the slot's first `length` rows are those of a prompt, and that it has no others."""

    def step(self, rows: Int, lengths: Int) -> Sequence[Run]:
        """Prepare a decode step: write its mask, and return its runs, one for each layer.

        Args:
            rows: int32 [n], slots that get a token. The others are computed too, and their rows are never read.
            lengths: int32 [n], the tokens that each of them holds.
        """

    def store(self, rows: Int, lengths: Int) -> None:
        """Add the new rows to their slots. Called after the runs of `step`, with the same arguments."""

    def release(self, slot: int) -> None:
        """Forget the slot's rows."""

    def clear(self, slot: int) -> None:
        """Forget the slot's rows, and write zeros over them."""


class OneSlotCache:
    """See `Cache`. Stages of fewer columns use a part of the largest stage's memory."""

    def __init__(self, layout: Layout, chip: Chip, memory: StepMemory) -> None:
        self._layout, self._chip, self._memory = layout, chip, memory
        self.layers = [_inputs(layout, chip, layer, _PAST) for layer in range(layout.layers)]
        self._pasts = {
            columns: self._views(layout.step(columns).inputs[3].shape, 0) for columns in layout.caches
        }
        self._shape = layout.step(layout.context).outputs[1].shape

    def start(self, slot: int, row: int) -> int:
        return row * self._layout.row

    def fill(self, slot: int, length: int) -> None:
        """Nothing to note: the runner counts the rows."""

    def step(self, rows: Int, lengths: Int) -> Sequence[Run]:
        memory, used = self._memory, int(lengths[0])
        columns = smallest(self._layout.caches, used)
        self._chip.write(memory.masks[columns], past_mask(1, columns, rows, lengths))
        return list(memory.runs(columns, self._pasts[columns], self._views(self._shape, used)))

    def store(self, rows: Int, lengths: Int) -> None:
        """Nothing to add: the step wrote the row in its place."""

    def _views(self, shape: Sequence[int], row: int) -> list[list[Any]]:
        """Each layer's keys and values from a row on."""
        start = self.start(0, row)
        return [[self._chip.view(cache, shape, start) for cache in caches] for caches in self.layers]

    def release(self, slot: int) -> None:
        """Nothing to forget: the runner counts the rows."""

    def clear(self, slot: int) -> None:
        for cache in chain(*self.layers):
            self._chip.write(cache, np.zeros(cache.shape(), np.float16))


class _SlotsCache:
    """What caches of several slots have in common. The mask says which columns a slot sees; the last is always seen."""

    layers: list[list[Any]]

    def __init__(self, layout: Layout, chip: Chip, memory: StepMemory, columns: int) -> None:
        """`columns`: of the mask."""
        self._layout, self._chip, self._memory = layout, chip, memory
        self._seen, self._hidden = chip.encode(np.array([0, MASKED], np.float32), layout.mask_dtype)
        self._mask = np.full((layout.slots, columns), self._hidden)
        self._mask[:, -1] = self._seen

    def start(self, slot: int, row: int) -> int:
        return (slot * self._layout.context + row) * self._layout.row

    def fill(self, slot: int, length: int) -> None:
        self.release(slot)
        self._mask[slot, :length] = self._seen

    def release(self, slot: int) -> None:
        self._mask[slot, :-1] = self._hidden

    def clear(self, slot: int) -> None:
        self.release(slot)
        size = self._layout.context * self._layout.row
        zeros = self._chip.zeros(size, self._layout.cache_dtype)
        for cache in chain(*self.layers):
            self._chip.copy(zeros, 0, cache, self.start(slot, 0), size)

    def _write_mask(self) -> None:
        self._chip.write(self._memory.masks[self._layout.context], self._mask)


class BatchedCache(_SlotsCache):
    """See `Cache`. The columns of the mask are the slot's own rows, then the recent ones, then the token itself."""

    def __init__(self, layout: Layout, chip: Chip, memory: StepMemory) -> None:
        super().__init__(layout, chip, memory, layout.context + layout.recent + 1)
        pasts = [_inputs(layout, chip, layer, _PAST + _RECENT) for layer in range(layout.layers)]
        self.layers, self._recent = [past[:2] for past in pasts], [past[2:] for past in pasts]
        shape = layout.step(layout.context).outputs[1].shape
        self._runs = [
            list(memory.runs(layout.context, pasts, [
                [chip.view(recent, shape, row * layout.slots * layout.row) for recent in pair] for pair in self._recent
            ])) for row in range(layout.recent)
        ]
        self._row = 0
        """The recent row that the next step writes."""
        self._flushed: dict[tuple[int, int], list[Any]] = {}
        """Where `flush` writes a slot's rows, by slot and first row: a view for each layer's keys and values, made when
        a place is used for the first time."""
        self._discarded = chip.new(layout.nets["flush"].stages[0].outputs[0])
        """Where `flush` writes the rows of slots that are not flushed."""
        self._next = np.zeros(layout.slots, np.int64)
        """Each slot's row at which its next flush begins, a multiple of `layout.recent`, so that views are few."""

    def fill(self, slot: int, length: int) -> None:
        super().fill(slot, length)
        self._next[slot] = -(-length // self._layout.recent) * self._layout.recent

    def step(self, rows: Int, lengths: Int) -> Sequence[Run]:
        if self._row == self._layout.recent:
            self._flush()
        self._write_mask()
        return self._runs[self._row]

    def store(self, rows: Int, lengths: Int) -> None:
        self._mask[rows, self._layout.context + self._row] = self._seen
        self._row += 1

    def clear(self, slot: int) -> None:
        super().clear(slot)
        layout = self._layout
        zeros = self._chip.zeros(layout.row, layout.cache_dtype)
        for recent in chain(*self._recent):
            for row in range(layout.recent):
                self._chip.copy(zeros, 0, recent, (row * layout.slots + slot) * layout.row, layout.row)

    def _flush(self) -> None:
        """Move the recent rows to their slots' own rows. A slot whose own rows end too soon takes them one by one."""
        context, size = self._layout.context, self._layout.recent
        recent = self._mask[:, context:-1] == self._seen
        used = np.flatnonzero(recent.any(axis=1))
        fits = self._next[used] + size <= context
        whole, packed = used[fits], used[~fits]
        if len(whole):
            self._flush_whole(whole.tolist())
            columns = self._next[whole, None] + np.arange(size)
            self._mask[whole[:, None], columns] = self._mask[whole, context:-1]
            self._next[whole] += size
        for slot in packed.tolist():
            self._flush_packed(slot, np.flatnonzero(recent[slot]).tolist())
        self._mask[:, context:-1] = self._hidden
        self._row = 0

    def _flush_whole(self, slots: Sequence[int]) -> None:
        """Run `flush` for each layer. The rows in which a slot had no token come along, and stay masked."""
        places = {slot: self._places(slot, int(self._next[slot])) for slot in slots}
        for layer, recent in enumerate(self._recent):
            outputs = [
                places[slot][2 * layer + kv] if slot in places else self._discarded
                for kv in (0, 1) for slot in range(self._layout.slots)
            ]
            self._chip.run("flush", recent, outputs)

    def _places(self, slot: int, start: int) -> list[Any]:
        if (slot, start) not in self._flushed:
            shape = self._layout.nets["flush"].stages[0].outputs[0].shape
            place = self.start(slot, start)
            self._flushed[slot, start] = [self._chip.view(cache, shape, place) for cache in chain(*self.layers)]
        return self._flushed[slot, start]

    def _flush_packed(self, slot: int, rows: Sequence[int]) -> None:
        """Copy recent rows to rows of the slot that are not seen."""
        layout = self._layout
        free = np.flatnonzero(self._mask[slot, : layout.context] != self._seen)[: len(rows)].tolist()
        for own, recent in zip(chain(*self.layers), chain(*self._recent), strict=True):
            for row, place in zip(rows, free, strict=True):
                start = (row * layout.slots + slot) * layout.row
                self._chip.copy(recent, start, own, self.start(slot, place), layout.row)
        self._mask[slot, free] = self._seen


class LastRowCache(_SlotsCache):
    """See `Cache`. A slot's last row is read like the others once its place is the last one: then it stays there. Until
    then each step writes it anew before it reads it."""

    def __init__(self, layout: Layout, chip: Chip, memory: StepMemory) -> None:
        super().__init__(layout, chip, memory, layout.context)
        self.layers = [_inputs(layout, chip, layer, _PAST) for layer in range(layout.layers)]
        self._runs = list(memory.runs(layout.context, self.layers, [[]] * layout.layers))

    def step(self, rows: Int, lengths: Int) -> Sequence[Run]:
        self._write_mask()
        return self._runs

    def store(self, rows: Int, lengths: Int) -> None:
        """Copy the last row of each slot to its place."""
        last, size = self._layout.context - 1, self._layout.row
        moves = [
            (self.start(slot, last), self.start(slot, place))
            for slot, place in zip(rows.tolist(), lengths.tolist(), strict=True) if place != last
        ]
        for cache in chain(*self.layers):
            for source, target in moves:
                self._chip.copy(cache, source, cache, target, size)
        self._mask[rows, lengths] = self._seen


def open_cache(layout: Layout, chip: Chip, memory: StepMemory) -> Cache:
    """The cache of a layout, empty."""
    if layout.last_row:
        return LastRowCache(layout, chip, memory)
    return (BatchedCache if layout.slots > 1 else OneSlotCache)(layout, chip, memory)


def _inputs(layout: Layout, chip: Chip, layer: int, indices: Sequence[int]) -> list[Any]:
    """Some of a block_cache's inputs, zeroed, in its own memory."""
    net = f"block_cache_{layer}"
    stages = layout.nets[net].stages
    largest = max(range(len(stages)), key=lambda index: stages[index].inputs[3].shape[1])
    own = chip.own_inputs(net, largest)
    tensors = [own[i] if i in own else chip.new(stages[largest].inputs[i]) for i in indices]
    for tensor in tensors:
        # The runtime does not clear its memory, which may contain another model's weights. The mask does not stop
        # large numbers and NaNs.
        chip.write(tensor, np.zeros(tensor.shape(), np.float16))
    return tensors
