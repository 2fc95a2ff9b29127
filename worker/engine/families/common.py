"""What the families have in common: sizes, pixel values, and the places of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart

from ...model_files.config_files import Count, Edges, Fields, ImageProcessor, Rope, TextConfig, checked
from ...model_files.json_files import read_object
from ...runners.base import MASKED
from ...runners.logits import Float, Int
from ..patches import Grid, grid_positions, normalise, patchify
from .family import Bools, Maker

_SOPHON_DEMO_TABLE = 100
"""The rows of the rotary table of sophon-demo's ViT. llm_convert's has a row for each patch."""
LONGEST_SIDE = 8192
"""Pixels along the longest side of a frame for which deploy/models exports the ViT's rotary table."""
_ROPE_TYPES = (None, "default", "mrope")
_ALIKE = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "rescale_factor")

Self = TypeVar("Self", bound="Common")


class VisionConfig(Fields):
    """The fields of config.json's `vision_config` that all families have. None: the family's own."""

    patch_size: Count | None = None
    spatial_merge_size: Count | None = None
    temporal_patch_size: Count | None = None

    def stated(self) -> dict[str, Any]:
        """The fields of the family (see `Common`). None: not stated."""
        return {
            "patch_size": self.patch_size, "merge_size": self.spatial_merge_size,
            "temporal_patch_size": self.temporal_patch_size,
        }


@dataclass(frozen=True)
class Common:
    """See `Family`. Fields have the names and the meaning of transformers'; the defaults are the published models'.

    Attributes:
        rescale, mean, std: how pixel values are normalised (see `patches.normalise`).
        vision_head_dim: the dimension of a head of the ViT.
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
    vision_head_dim: int = 80
    deepstack: int = 0

    end_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>", "<|endoftext|>")
    """As in sophon-demo's program."""
    tokens_per_grid: ClassVar[int] = 0
    interleaved: ClassVar[bool] = False
    vision_config: ClassVar[type[VisionConfig]] = VisionConfig
    """The fields of the family's `vision_config`."""

    @classmethod
    def read(cls: type[Self], directory: Path, text: TextConfig, vision: object) -> Self:
        path = directory / "config.json"
        _check_rope(path, text.rope, cls.interleaved)
        stated = {
            "image_token_id": text.image_token_id, "video_token_id": text.video_token_id,
            **_image_fields(directory), **checked(cls.vision_config, vision, path, "vision_config").stated(),
        }
        return cls(**{name: value for name, value in stated.items() if value is not None})

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
        return self.repeat_pads(text, [self.vision_tokens(self.grid(medium)) for medium in media], encode)

    def repeat_pads(
        self, text: str, counts: Sequence[int], encode: Callable[[str], Sequence[int]]
    ) -> tuple[Int, Bools]:
        """Tokens of a text in which each image or video token is repeated as often as `counts` says, in order. Raises
        BadRequest unless there are as many."""
        tokens = np.array(encode(text), np.int32)
        pads = np.isin(tokens, (self.image_token_id, self.video_token_id))
        if pads.sum() != len(counts):
            raise BadRequest("The model's chat template does not place all media of these messages.")
        repeats = np.ones(len(tokens), np.int64)
        repeats[pads] = counts
        return np.repeat(tokens, repeats), np.repeat(pads, repeats)

    def vit_positions(self, grids: Sequence[tuple[int, int]], size: int) -> Int:
        """int32 [size, 2]: row and column of each patch."""
        positions = np.zeros((size, 2), np.int32)
        used = sum(h * w for h, w in grids)
        positions[:used] = np.concatenate([grid_positions(h, w, self.merge_size) for h, w in grids])
        return positions

    def max_side(self, maker: Maker, size: int, tables: Sequence[int]) -> int:
        """Rows of the ViT's rotary table, beyond which it reads other memory.

        This is the maker's number, but at most what fits into the file's table. The file states the table's size in
        whole pages, but neither rows nor dtype. A row has a half-precision number for each of a quarter of a head's
        dimensions.
        """
        ours = LONGEST_SIDE // self.patch_size + 1
        rows = {"deploy/models": ours, "sophon-demo": _SOPHON_DEMO_TABLE, "llm_convert": size}[maker]
        return min([rows, *(bytes // (self.vision_head_dim // 4 * 2) for bytes in tables)])


def block_mask(sizes: Sequence[int], size: int) -> Float:
    """float32 [size, size]: a mask in which patches see only their own block. The padding is a block of its own.

    Args:
        sizes: patches of each block.
    """
    block = np.repeat(np.arange(len(sizes) + 1), [*sizes, size - sum(sizes)])
    mask: Float = np.where(block[:, None] == block, np.float32(0), np.float32(MASKED))
    return mask


def _check_rope(path: Path, rope: Rope, interleaved: bool) -> None:
    """Raise Unsupported for rotary embeddings that the nets do not have."""
    if rope.type not in _ROPE_TYPES:
        raise Unsupported(f"{path} asks for rotary embeddings of type {rope.type!r}, which are not served.")
    if rope.mrope_interleaved not in (None, interleaved):
        raise Unsupported(f"{path} has mrope_interleaved={rope.mrope_interleaved}, which is another model's.")


def _image_fields(directory: Path) -> dict[str, Any]:
    """The fields of `Common` that the image processor's files state; None: not stated. Raises Unsupported if videos are
    processed differently: the ViT takes both."""
    image, video = (
        _processor(directory, *place) for place in
        (("preprocessor_config.json", "image_processor"), ("video_preprocessor_config.json", "video_processor"))
    )
    for name in _ALIKE:
        of_image, of_video = getattr(image, name), getattr(video, name)
        if None not in (of_image, of_video) and of_image != of_video:
            raise Unsupported(
                f"{directory} processes videos with {name} {of_video}, and images with {of_image}: only models that "
                "process both alike are served."
            )
    size = image.size or Edges()
    low, high = image.min_pixels or size.shortest_edge, image.max_pixels or size.longest_edge
    if low is not None and high is not None and low > high:
        raise Unsupported(f"The image processor's files in {directory} have a minimum of {low} pixels above {high}.")
    return {"min_pixels": low, "max_pixels": high, "rescale": image.rescale_factor, "mean": image.image_mean,
            "std": image.image_std}


def _processor(directory: Path, file: str, part: str) -> ImageProcessor:
    """A processor of images or of videos, from a file of its own, or else from that of transformers 5."""
    own = read_object(directory / file)
    if own is not None:
        return checked(ImageProcessor, own, directory / file)
    both = read_object(directory / "processor_config.json") or {}
    return checked(ImageProcessor, both.get(part, {}), directory / "processor_config.json", part)
