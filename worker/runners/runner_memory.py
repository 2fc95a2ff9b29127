"""The input and output tensors of a SAIL runner's nets, allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .chip import Chip, Run
from .layout import Layout


class StepMemory:
    """The tensors of a decode step, but for its cache. Layers read and write two hidden states by turns.

    Attributes:
        last: the hidden state that the last layer writes.
    """

    def __init__(self, layout: Layout, chip: Chip) -> None:
        step = layout.step(layout.context)
        self.ids = chip.new(layout.nets["embedding_cache"].stages[0].inputs[0])
        self._hiddens = [chip.new(step.inputs[0]) for _ in range(2)]
        self.positions = chip.new(step.inputs[1])
        self.masks = {columns: chip.new(layout.step(columns).inputs[2]) for columns in layout.caches}
        self.embed = Run.of("embedding_cache", [self.ids], self._hiddens[:1])
        self.last = self._hiddens[layout.layers % 2]

    def runs(self, columns: int, pasts: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> Iterator[Run]:
        """The runs of all layers over a cache of `columns` columns: each layer's inputs that are the cache, and its
        outputs for the new rows."""
        for index, (past, new) in enumerate(zip(pasts, rows, strict=True)):
            hidden, other = self._hiddens if index % 2 == 0 else self._hiddens[::-1]
            inputs = [hidden, self.positions, self.masks[columns], *past]
            yield Run.of(f"block_cache_{index}", inputs, [other, *new])


class HeadMemory:
    """The tensors of the scores and, if a net chooses tokens, of the tokens, and perhaps of the sum of each row.

    Attributes:
        ends: the hidden states of the last tokens of prompts, one row for each.
    """

    def __init__(self, layout: Layout, chip: Chip) -> None:
        net = layout.nets["lm_head"].stages[0]
        self.shape = net.inputs[0].shape
        self.ends = chip.new(net.inputs[0])
        self.scores = chip.new(net.outputs[0])
        chosen = layout.nets["greedy_head"].stages[0].outputs if layout.greedy_head else ()
        self.chosen = [chip.new(tensor) for tensor in chosen]
