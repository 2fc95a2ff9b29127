"""The input and output tensors of a SAIL runner's nets, allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..model_files.bmodel import BmodelTensor
from .chip import Chip, Run
from .layout import Layout
from .logits import Int


class SlotNet:
    """A net that takes all slots at once, or one at a time (`Layout.rows`). Its tensors have a row for each slot."""

    def __init__(self, layout: Layout, chip: Chip, net: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        stage, self._rows = layout.nets[net].stages[0], layout.rows

        def part(tensor: Any, like: BmodelTensor, index: int) -> Any:
            return chip.view(tensor, like.shape, index * prod(like.shape))

        self._runs = [
            Run.of(net, [part(*one, index) for one in zip(inputs, stage.inputs, strict=True)],
                   [part(*one, index) for one in zip(outputs, stage.outputs, strict=True)])
            for index in range(layout.slots // layout.rows)
        ]

    def runs(self, slots: Sequence[int]) -> list[Run]:
        """The runs that compute these slots."""
        return [self._runs[index] for index in sorted({slot // self._rows for slot in slots})]


def _for_slots(layout: Layout, tensor: BmodelTensor) -> BmodelTensor:
    """An input or output of a `SlotNet`, with a row for each slot."""
    return replace(tensor, shape=(layout.slots, prod(tensor.shape) // layout.rows))


class StepMemory:
    """The tensors of a decode step, but for its cache. Layers read and write two hidden states by turns.

    Attributes:
        embed: the net that embeds the slots' tokens.
        masks: by the columns of the cache.
        last: the hidden states that the last layer writes.
    """

    def __init__(self, layout: Layout, chip: Chip) -> None:
        self._chip, self._slots_first = chip, layout.last_row
        step = layout.step(layout.context)
        self._ids = chip.new(_for_slots(layout, layout.nets["embedding_cache"].stages[0].inputs[0]))
        self._hiddens = [chip.new(step.inputs[0]) for _ in range(2)]
        self._positions = chip.new(step.inputs[1])
        self.masks = {columns: chip.new(layout.step(columns).inputs[2]) for columns in layout.caches}
        self.embed = SlotNet(layout, chip, "embedding_cache", [self._ids], self._hiddens[:1])
        self.last = self._hiddens[layout.layers % 2]

    def write(self, tokens: Int, positions: Int) -> None:
        """Write each slot's token, int32 [slots], and its positions, int32 [3, slots]."""
        self._chip.write(self._ids, tokens)
        self._chip.write(self._positions, np.ascontiguousarray(positions.T) if self._slots_first else positions)

    def runs(self, columns: int, pasts: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> Iterator[Run]:
        """The runs of all layers over a cache of `columns` columns: each layer's inputs that are the cache, and its
        outputs for the new rows."""
        for index, (past, new) in enumerate(zip(pasts, rows, strict=True)):
            hidden, other = self._hiddens if index % 2 == 0 else self._hiddens[::-1]
            inputs = [hidden, self._positions, self.masks[columns], *past]
            yield Run.of(f"block_cache_{index}", inputs, [other, *new])


class HeadMemory:
    """The tensors of the scores and, if a net chooses tokens, of the tokens, and perhaps of the sum of each row.

    Attributes:
        ends: the hidden states of the last tokens of prompts, one row for each.
        last: the hidden states of a step; see `StepMemory`.
        scores, chosen: what `lm_head` and `greedy_head` give, a row for each slot.
        of_ends, of_last: `lm_head` from these states to the scores.
        choose: `greedy_head`; None if it is not in the file.
    """

    def __init__(self, layout: Layout, chip: Chip, last: Any) -> None:
        head = layout.nets["lm_head"].stages[0]
        self.ends, self.last = chip.new(_for_slots(layout, head.inputs[0])), last
        self.scores = chip.new(_for_slots(layout, head.outputs[0]))
        self.of_ends, self.of_last = (
            SlotNet(layout, chip, "lm_head", [hidden], [self.scores]) for hidden in (self.ends, self.last)
        )
        outputs = layout.nets["greedy_head"].stages[0].outputs if layout.greedy_head else ()
        self.chosen = [chip.new(_for_slots(layout, tensor)) for tensor in outputs]
        self.choose = SlotNet(layout, chip, "greedy_head", [self.scores], self.chosen) if outputs else None
