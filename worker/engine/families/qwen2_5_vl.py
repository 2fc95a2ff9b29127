"""Qwen2.5-VL (arXiv 2502.13923), as transformers 4.49, which introduced it, has it.

Most layers of its ViT see windows of 112 × 112 pixels. In M-RoPE's time, a second counts as `tokens_per_second`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart

from ...model_files.config_files import Count
from ...runners.logits import Float, Int
from ..mrope import Box, rope_index
from .common import Common, VisionConfig, block_mask
from .family import Bools, Sizes

_FPS = 2.0
"""Frames a second of a video without times, as in transformers' processor and qwen-vl-utils."""
_MOST_SECONDS = 2.0**20
"""The longest time from one temporal grid to the next that is counted: 12 days, for which no context has positions."""


class _VisionConfig(VisionConfig):
    """The defaults are transformers'; the published models count 2 tokens a second."""

    depth: Count = 32
    fullatt_block_indexes: list[Annotated[int, Field(ge=0)]] = [7, 15, 23, 31]
    window_size: Count = 112
    tokens_per_second: Annotated[float, Field(gt=0, le=1000)] = 4

    @model_validator(mode="after")
    def _fits(self) -> _VisionConfig:
        side = (self.patch_size or Qwen25VL.patch_size) * (self.spatial_merge_size or Qwen25VL.merge_size)
        if self.window_size % side:
            raise ValueError(f"window_size {self.window_size} is not a multiple of {side}")
        if any(layer >= self.depth for layer in self.fullatt_block_indexes):
            raise ValueError(f"fullatt_block_indexes {self.fullatt_block_indexes} are not layers of {self.depth}")
        return self

    def stated(self) -> dict[str, Any]:
        return super().stated() | {"window_size": self.window_size, "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Qwen25VL(Common):
    """See `Family` and `Common`.

    Attributes:
        window_size: pixels along a side of a window.
        tokens_per_second: what a second counts in M-RoPE's time.
    """

    max_pixels: int = 28 * 28 * 16384
    window_size: int = 112
    tokens_per_second: float = 2

    vision_config = _VisionConfig

    def patches(self, frames: Frames) -> Frames:
        """The patches of each temporal grid, window after window."""
        patches = super().patches(frames)
        h, w = frames.shape[1] // self.patch_size, frames.shape[2] // self.patch_size
        order, _ = self._windows(h, w)
        groups = patches.reshape(-1, len(order), self.merge_size**2 * self.patch_dim)
        return groups[:, order].reshape(patches.shape)

    def positions(self, vision: Bools, media: Sequence[FramesPart]) -> tuple[Int, int]:
        merge = self.merge_size
        return rope_index(vision, [
            Box(self._times(medium, t), h // merge, w // merge)
            for medium, (t, h, w) in ((medium, self.grid(medium)) for medium in media)
        ])

    def _times(self, medium: FramesPart, grids: int) -> list[int]:
        """The times of temporal grids, in float32 as in the release. (4.57.1 first drops the fraction of a grid's
        seconds, which makes all times of a clip of more than two frames a second 0. 4.50 does not.)"""
        seconds = np.float32(min(self.temporal_patch_size / (medium.fps or _FPS), _MOST_SECONDS))
        index = np.arange(grids, dtype=np.float32)
        times: list[int] = (index * seconds * np.float32(self.tokens_per_second)).astype(np.int64).tolist()
        return times

    def vit_inputs(self, grids: Sequence[tuple[int, int]], size: int) -> tuple[Int, Float, Float, Int]:
        """int32 [size, 2]: row and column of each patch; float32 [size, size], two masks: one hides other grids, the
        other other windows, too; int32 [size / merge²]: where each vision token lies among those of the windows."""
        merged = self.merge_size**2
        positions, reverse = self.vit_positions(grids, size), np.arange(size // merged, dtype=np.int32)
        windows: list[int] = []
        start = 0
        for h, w in grids:
            order, sizes = self._windows(h, w)
            end = start + len(order)
            own = positions[start * merged : end * merged].reshape(len(order), -1)
            positions[start * merged : end * merged] = own[order].reshape(-1, 2)
            reverse[start:end] = start + np.argsort(order)
            windows += [tokens * merged for tokens in sizes]
            start = end
        return positions, block_mask([h * w for h, w in grids], size), block_mask(windows, size), reverse

    def _windows(self, h: int, w: int) -> tuple[Int, list[int]]:
        """The vision tokens of a temporal grid of `h` × `w` patches, window after window, and the tokens of each
        window. Windows at the right and at the bottom may be smaller."""
        side = self.window_size // (self.merge_size * self.patch_size)
        rows, columns = (axis.ravel() for axis in np.indices((h // self.merge_size, w // self.merge_size)))
        window = rows // side * (w // self.merge_size) + columns // side
        return np.argsort(window, kind="stable").astype(np.int32), np.unique(window, return_counts=True)[1].tolist()

    def vit_elements(self, size: int, hidden: int) -> tuple[Sizes, Sizes]:
        tokens = size // self.merge_size**2
        return (size * self.patch_dim, size * 2, size * size, size * size, tokens), (tokens * hidden,)
