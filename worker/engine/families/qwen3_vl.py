"""Qwen3-VL (arXiv 2511.21631), as transformers 4.57 has it.

Its ViT adds learned positions, interpolated from a square, to the patches. Vision features of some of its layers are
added to the hidden states after the first layers of the language model (deepstack). Each temporal grid of a video has
its time as text before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.jobs import FramesPart

from ...model_files.config_files import Count
from ...runners.logits import Float, Int
from ..mrope import Box, rope_index
from .common import Common, VisionConfig, block_mask
from .family import Bools, Maker, Sizes

_IMAGE, _VIDEO = "<|image_pad|>", "<|vision_start|><|video_pad|><|vision_end|>"
_PLACE = re.compile("|".join(map(re.escape, (_VIDEO, "<|video_pad|>", _IMAGE))))
_INTERVAL = 0.5
"""Seconds between the frames of a video without times, as in qwen-vl-utils."""


class _VisionConfig(VisionConfig):
    """The defaults are transformers'."""

    depth: Count = 27
    hidden_size: Count = 1152
    num_heads: Count = 16
    deepstack_visual_indexes: list[Annotated[int, Field(ge=0)]] = [8, 16, 24]
    num_position_embeddings: Count = 48 * 48

    @model_validator(mode="after")
    def _fits(self) -> _VisionConfig:
        layers = self.deepstack_visual_indexes
        if sorted(set(layers)) != layers or any(layer >= self.depth for layer in layers):
            raise ValueError(f"deepstack_visual_indexes {layers} are not layers of {self.depth}, in order")
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(f"num_position_embeddings {self.num_position_embeddings} is not a square")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.num_heads} heads")
        return self

    def stated(self) -> dict[str, Any]:
        return super().stated() | {
            "vision_head_dim": self.hidden_size // self.num_heads, "vision_width": self.hidden_size,
            "deepstack": len(self.deepstack_visual_indexes),
            "position_side": math.isqrt(self.num_position_embeddings),
        }


@dataclass(frozen=True)
class Qwen3VL(Common):
    """See `Family` and `Common`.

    Attributes:
        position_side: learned positions along a side of their square.
        vision_width: numbers in a learned position; 0: unknown.
    """

    patch_size: int = 16
    min_pixels: int = 256 * 256
    max_pixels: int = 4096 * 4096
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    vision_head_dim: int = 64
    deepstack: int = 3
    position_side: int = 48
    vision_width: int = 0

    vision_config = _VisionConfig
    interleaved = True
    tokens_per_grid = 9
    """Two markers, and `<10.5 seconds>`, which the published tokenizer splits into 7 tokens."""

    def prompt_tokens(
        self, text: str, media: Sequence[FramesPart], encode: Callable[[str], Sequence[int]]
    ) -> tuple[Int, Bools]:
        """The chat template writes one video between its markers; each temporal grid gets its time and markers of its
        own."""
        if len(_PLACE.findall(text)) != len(media):
            raise BadRequest("The model's chat template does not place all media of these messages.")
        waiting, counts = iter(media), list[int]()

        def places(match: re.Match[str]) -> str:
            medium = next(waiting)
            t, h, w = self.grid(medium)
            if (medium.type == "image") != (match.group() == _IMAGE):
                raise BadRequest("The model's chat template does not place the media in their order.")
            counts.extend([self.vision_tokens((1, h, w))] * t)
            if medium.type == "image":
                return match.group()
            return "".join(f"<{time:.1f} seconds>{_VIDEO}" for time in self._times(medium))

        return self.repeat_pads(_PLACE.sub(places, text), counts, encode)

    def _times(self, medium: FramesPart) -> list[float]:
        """The time of each temporal grid in seconds: the mean of its first and its last frame's."""
        times = list(medium.times) or [_INTERVAL * index for index in range(medium.frames)]
        size = self.temporal_patch_size
        times += times[-1:] * (-len(times) % size)
        return [(times[start] + times[start + size - 1]) / 2 for start in range(0, len(times), size)]

    def positions(self, vision: Bools, media: Sequence[FramesPart]) -> tuple[Int, int]:
        """All temporal grids begin at time 0: the text tells them apart."""
        merge = self.merge_size
        return rope_index(vision, [
            Box([0], h // merge, w // merge) for medium in media for t, h, w in [self.grid(medium)] for _ in range(t)
        ])

    def vit_inputs(self, grids: Sequence[tuple[int, int]], size: int) -> tuple[Int, Int, Float, Float]:
        """int32 [size, 2]: row and column of each patch; int32 [size, 4] and float32 [size, 4, 1]: the learned
        positions around it, and their weights; float32 [size, size]: a mask that hides other grids."""
        positions = self.vit_positions(grids, size)
        near, weights = np.zeros((size, 4), np.int32), np.zeros((size, 4, 1), np.float32)
        start = 0
        for h, w in grids:
            own = slice(start, start + h * w)
            (top, bottom, down), (left, right, across) = (
                self._between(count, places) for count, places in zip((h, w), positions[own].T, strict=True)
            )
            corners = (top, left), (top, right), (bottom, left), (bottom, right)
            near[own] = np.stack([row * self.position_side + column for row, column in corners], axis=1)
            weights[own, :, 0] = np.stack(
                [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], axis=1
            )
            start += h * w
        return positions, near, weights, block_mask([h * w for h, w in grids], size)

    def _between(self, count: int, places: Int) -> tuple[Int, Int, Float]:
        """For patches at `places` along a side of `count` patches: the learned positions before and after each, int32,
        and how far it lies beyond the first, float32 from 0 to 1. Equal to the last bit to `torch.linspace`, which
        counts from both ends and rounds once."""
        last = self.position_side - 1
        step = np.float32(last) / np.float32(count - 1)
        at = np.where(places < count // 2, step * places, last - step * (count - 1 - places)).astype(np.float32)
        before = at.astype(np.int32)
        return before, np.minimum(before + 1, last).astype(np.int32), (at - before).astype(np.float32)

    def max_side(self, maker: Maker, size: int, tables: Sequence[int]) -> int:
        """Also checks that all learned positions fit into the largest table. Raises Unsupported."""
        needed = self.position_side**2 * self.vision_width * 2
        if tables and max(tables) < needed:
            raise Unsupported(
                f"The largest table of the bmodel's ViT has {max(tables)} bytes; the learned positions of its "
                f"config.json need {needed}."
            )
        return super().max_side(maker, size, tables)

    def vit_elements(self, size: int, hidden: int) -> tuple[Sizes, Sizes]:
        tokens = size // self.merge_size**2
        inputs = (size * self.patch_dim, size * 2, size * 4, size * 4, size * size)
        return inputs, (tokens * hidden,) * (1 + self.deepstack)
