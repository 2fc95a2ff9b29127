"""Qwen2-VL (arXiv 2409.12191), as transformers 4.45 to 4.57 have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sailq.shared.jobs import FramesPart

from ...runners.logits import Float, Int
from ..mrope import Box, rope_index
from .common import Common, block_mask
from .family import Bools, Sizes


@dataclass(frozen=True)
class Qwen2VL(Common):
    """See `Family` and `Common`."""

    def positions(self, vision: Bools, media: Sequence[FramesPart]) -> tuple[Int, int]:
        """A temporal grid counts as one in time."""
        grids, merge = [self.grid(medium) for medium in media], self.merge_size
        return rope_index(vision, [Box(range(t), h // merge, w // merge) for t, h, w in grids])

    def vit_inputs(self, grids: Sequence[tuple[int, int]], size: int) -> tuple[Int, Float]:
        """int32 [size, 2]: row and column of each patch; float32 [size, size]: a mask that hides other grids."""
        return self.vit_positions(grids, size), block_mask([h * w for h, w in grids], size)

    def vit_elements(self, size: int, hidden: int) -> tuple[Sizes, Sizes]:
        return (size * self.patch_dim, size * 2, size * size), (size // self.merge_size**2 * hidden,)
