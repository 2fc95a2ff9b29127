"""The input and output tensors of a SAIL runner's nets, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .chip import Chip
from .inputs import causal_mask
from .layout import Layout


class VisionMemory:
    """The tensors of the ViT."""

    def __init__(self, layout: Layout, chip: Chip) -> None:
        self._chip = chip
        largest = next(s for s in layout.nets["vit"].stages if s.inputs[0].shape[0] == layout.patches[-1])
        self._inputs = [chip.new(tensor) for tensor in largest.inputs]
        self._shapes = [tensor.shape for tensor in largest.inputs]
        self.embeds = chip.new(largest.outputs[0])

    def inputs(self, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """The inputs for values of these shapes, with the leading dims of 1 that the net has beside them."""
        given = zip(self._inputs, self._shapes, shapes, strict=True)
        return [self._chip.view(tensor, [*own[: -len(shape)], *shape]) for tensor, own, shape in given]


class PromptMemory:
    """The tensors of prefill, for the longest part. The masks are the same for every prompt."""

    def __init__(self, layout: Layout, chip: Chip) -> None:
        most = layout.prompts[-1]
        block = layout.stage("block_0", most)
        self.ids = chip.new(layout.stage("embedding", most).inputs[0])
        self.hidden, self.other = (chip.new(block.inputs[0]) for _ in range(2))
        self.positions = chip.new(block.inputs[1])
        self.masks = {}
        for size in layout.prompts if layout.masked else ():
            self.masks[size] = chip.new(layout.stage("block_0", size).inputs[2])
            chip.write(self.masks[size], causal_mask(size))


class StepMemory:
    """The tensors of a decode step."""

    def __init__(self, layout: Layout, chip: Chip) -> None:
        step = layout.step(layout.context)
        self.ids = chip.new(layout.nets["embedding_cache"].stages[0].inputs[0])
        self.hiddens = [chip.new(step.inputs[0]) for _ in range(2)]
        self.positions = chip.new(step.inputs[1])
        self.masks = {columns: chip.new(layout.step(columns).inputs[2]) for columns in layout.caches}
        self.row = step.outputs[1].shape
        self.nobody = chip.new(step.outputs[1])


class HeadMemory:
    """The tensors of the scores and, if the file has a net that chooses tokens, of those tokens."""

    def __init__(self, layout: Layout, chip: Chip) -> None:
        net = layout.nets["lm_head"].stages[0]
        self.shape = net.inputs[0].shape
        self.scores = chip.new(net.outputs[0])
        self.token = chip.new(layout.nets["greedy_head"].stages[0].outputs[0]) if layout.greedy_head else None
