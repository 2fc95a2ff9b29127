"""The ViT of a bmodel: which grids share a launch, and its tensors, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.families.family import Family
from ..engine.patches import Grid
from .base import Bytes
from .chip import Chip
from .layout import Layout
from .logits import Float
from .packing import smallest, vision_launches


class VisionNets:
    """Encodes media. Each size of the ViT has positions and masks of its own, which are written when its grids
    change."""

    def __init__(self, layout: Layout, chip: Chip, family: Family) -> None:
        self._layout, self._chip, self._family = layout, chip, family
        stages = {stage.inputs[0].shape[0]: stage for stage in layout.nets["vit"].stages}
        largest = stages[layout.patches[-1]]
        self._pixels, self._embeds = chip.new(largest.inputs[0]), [chip.new(tensor) for tensor in largest.outputs]
        self._others = {size: [chip.new(tensor) for tensor in stage.inputs[1:]] for size, stage in stages.items()}
        self._written: dict[int, tuple[int, list[tuple[int, int]], list[Any]]] = {}

    def encode(self, media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        """See `base.Runner.vision`. Temporal grids share launches, as `packing.vision_launches` divides them, if a mask
        keeps them apart. The mask does not stop values that are not finite: after these, each grid of the launch runs
        alone."""
        grids = [(h, w) for _, (t, h, w) in media for _ in range(t)]
        pieces = [piece for pixels, (t, *_) in media for piece in np.split(pixels, t)]
        embeds: dict[int, Float] = {}
        for launch in self._launches([len(piece) for piece in pieces]):
            made = self._launch([pieces[i] for i in launch], [grids[i] for i in launch])
            if len(launch) > 1 and not all(np.isfinite(one).all() for one in made):
                made = [self._launch([pieces[i]], [grids[i]])[0] for i in launch]
            embeds.update(zip(launch, made, strict=True))
        ordered = iter([embeds[index] for index in range(len(grids))])
        return [np.concatenate([next(ordered) for _ in range(t)]) for _, (t, *_) in media]

    def _launches(self, sizes: Sequence[int]) -> list[list[int]]:
        if self._layout.vision_masked:
            return vision_launches(sizes, self._layout.patches)
        return [[index] for index in range(len(sizes))]

    def _launch(self, pieces: Sequence[Bytes], grids: Sequence[tuple[int, int]]) -> list[Float]:
        """The vision tokens of temporal grids. Runs at the smallest size that holds them, or at their own on a dynamic
        net."""
        family, used = self._family, sum(map(len, pieces))
        size = used if self._layout.dynamic_vision else smallest(self._layout.patches, used)
        values, patches = np.zeros((size, family.patch_dim), np.float32), np.concatenate(pieces)
        values[:used] = patches if self._layout.raw_pixels else family.pixel_values(patches)
        pixels = self._chip.view(self._pixels, values.shape)
        self._chip.write(pixels, values)
        self._chip.run("vit", [pixels, *self._positions_and_masks(size, grids)], self._embeds)
        ends = np.cumsum([family.vision_tokens((1, h, w)) for h, w in grids]).tolist()
        made = np.stack([self._read(embeds, ends[-1]) for embeds in self._embeds], axis=1)
        return np.split(made, ends[:-1])

    def _read(self, embeds: Any, count: int) -> Float:
        """The first vision tokens of an output, float32 [count, H]."""
        values: Float = self._chip.read(self._chip.view(embeds, [count, embeds.shape()[-1]]))
        return values

    def _positions_and_masks(self, size: int, grids: Sequence[tuple[int, int]]) -> list[Any]:
        """The ViT's inputs after the patches, with the leading dims of 1 that the net has. A net without a mask lacks
        the last."""
        place = smallest(self._layout.patches, size)
        written = self._written.get(place)
        if written is None or written[:2] != (size, list(grids)):
            others = self._others[place]
            values = self._family.vit_inputs(grids, size)[: len(others)]
            views = [self._chip.view(tensor, [*tensor.shape()[: -value.ndim], *value.shape])
                     for tensor, value in zip(others, values, strict=True)]
            for view, value in zip(views, values, strict=True):
                self._chip.write(view, value)
            written = self._written[place] = size, list(grids), views
        return written[2]
