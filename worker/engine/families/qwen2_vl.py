"""Qwen2-VL (arXiv 2409.12191), as transformers 4.45 to 4.57 have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sailq.shared.errors import BadRequest
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart

from ...model_files.json_files import Json, read_object
from ...runners.base import MASKED
from ...runners.logits import Float, Int
from ..mrope import rope_index
from ..patches import Grid, grid_positions, normalise, patchify
from .family import Bools, Maker, Sizes

VISION_TABLE = 8192 // 14 + 1
"""Rows of the ViT's rotary table that deploy/models exports: `MAX_GRID` of qwen2_vl_nets.py."""
_SOPHON_DEMO_TABLE = 100
"""The rows of sophon-demo's table. llm_convert's has a row for each patch."""
_TABLE_ROW = 20 * 2
"""Bytes of a row: a frequency for 4 of the 80 dims of a vision head."""


@dataclass(frozen=True)
class Qwen2VL:
    """See `Family`. Fields have the names and the meaning of transformers'; the defaults are the published models'.

    Attributes:
        rescale, mean, std: how pixel values are normalised (see `patches.normalise`).
    """

    image_token_id: int = 151655
    video_token_id: int = 151656
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    end_tokens = ("<|im_end|>", "<|endoftext|>")
    """As in sophon-demo's program."""

    @classmethod
    def read(cls, directory: Path, config: Json) -> Qwen2VL:
        """Read `vision_config` and the media's tokens of config.json, and preprocessor_config.json if it is there."""
        processor = read_object(directory / "preprocessor_config.json") or {}
        vision, size = config["vision_config"], processor.get("size", {})
        return cls(
            image_token_id=config["image_token_id"],
            video_token_id=config["video_token_id"],
            patch_size=vision.get("patch_size", cls.patch_size),
            merge_size=vision.get("spatial_merge_size", cls.merge_size),
            temporal_patch_size=vision.get("temporal_patch_size", cls.temporal_patch_size),
            min_pixels=processor.get("min_pixels") or size.get("shortest_edge") or cls.min_pixels,
            max_pixels=processor.get("max_pixels") or size.get("longest_edge") or cls.max_pixels,
            rescale=processor.get("rescale_factor", cls.rescale),
            mean=tuple(processor.get("image_mean", cls.mean)),
            std=tuple(processor.get("image_std", cls.std)),
        )

    @property
    def patch_dim(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2

    def grid(self, medium: FramesPart) -> Grid:
        """An image is a video of one frame. The last frame of an odd number is repeated."""
        unit = self.patch_size * self.merge_size
        if medium.height % unit or medium.width % unit:
            raise BadRequest(f"A frame of {medium.width} × {medium.height} is not a multiple of {unit} pixels.")
        t = -(-medium.frames // self.temporal_patch_size)
        return t, medium.height // self.patch_size, medium.width // self.patch_size

    def vision_tokens(self, grid: Grid) -> int:
        t, h, w = grid
        return t * h * w // self.merge_size**2

    def patches(self, frames: Frames) -> Frames:
        patches, _ = patchify(frames, self.patch_size, self.merge_size, self.temporal_patch_size)
        return patches

    def pixel_values(self, patches: Frames) -> Float:
        return normalise(patches, self.rescale, self.mean, self.std)

    def prompt_tokens(
        self, text: str, media: Sequence[FramesPart], encode: Callable[[str], Sequence[int]]
    ) -> tuple[Int, Bools]:
        """The chat template writes one image or video token for each medium; it is repeated for each vision token."""
        tokens = np.array(encode(text), np.int32)
        pads = np.isin(tokens, (self.image_token_id, self.video_token_id))
        if pads.sum() != len(media):
            raise BadRequest("The model's chat template does not place all media of these messages.")
        repeats = np.ones(len(tokens), np.int64)
        repeats[pads] = [self.vision_tokens(self.grid(medium)) for medium in media]
        return np.repeat(tokens, repeats), np.repeat(pads, repeats)

    def positions(self, vision: Bools, media: Sequence[FramesPart]) -> tuple[Int, int]:
        return rope_index(vision, [self.grid(medium) for medium in media], self.merge_size)

    def vit_inputs(self, grids: Sequence[tuple[int, int]], size: int) -> tuple[Int, Float]:
        """int32 [size, 2]: row and column of each patch; float32 [size, size]: a mask that hides other grids. The
        padding is a grid of its own."""
        patches = [h * w for h, w in grids]
        positions = np.zeros((size, 2), np.int32)
        positions[: sum(patches)] = np.concatenate([grid_positions(h, w, self.merge_size) for h, w in grids])
        grid = np.repeat(np.arange(len(grids) + 1), [*patches, size - sum(patches)])
        return positions, np.where(grid[:, None] == grid, np.float32(0), np.float32(MASKED))

    def vit_elements(self, size: int, hidden: int) -> tuple[Sizes, Sizes]:
        return (size * self.patch_dim, size * 2, size * size), (size // self.merge_size**2 * hidden,)

    def max_side(self, maker: Maker, size: int, tables: Sequence[int]) -> int:
        """Rows of the ViT's rotary table, beyond which it reads other memory.

        This is the maker's number, but at most what fits into the file's table. The file states the table's size in
        whole pages, but neither rows nor dtype.
        """
        rows = {"deploy/models": VISION_TABLE, "sophon-demo": _SOPHON_DEMO_TABLE, "llm_convert": size}[maker]
        return min([rows, *(bytes // _TABLE_ROW for bytes in tables)])
