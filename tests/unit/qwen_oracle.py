"""qwen-vl-utils as an oracle for frame numbers and sizes.

It imports torchvision, of which there is no CPU build for the torch that the tests pin. Nothing asked of it
here needs an operator of torchvision: a stand-in module satisfies the import, its `resize` only notes the
size it was asked for, and clips are tensors without storage (torch's `meta` device).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch

from sailq.shared.jobs import ModelCard


class _Interpolation:
    BICUBIC = "bicubic"


def _resize(video: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
    if min(size) <= 0:  # torch's interpolation refuses this, too
        raise ValueError("output sizes should be greater than 0")
    return torch.empty((*video.shape[:2], *size), device="meta")


def _stand_in() -> dict[str, ModuleType]:
    vision, io, transforms, functional = (
        ModuleType(f"torchvision{name}") for name in ("", ".io", ".transforms", ".transforms.functional")
    )
    functional.resize = _resize  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    transforms.InterpolationMode = _Interpolation  # type: ignore[attr-defined]
    vision.io, vision.transforms, vision.__version__ = io, transforms, "0"  # type: ignore[attr-defined]
    return {module.__name__: module for module in (vision, io, transforms, functional)}


# Only for this import: other libraries ask sys.modules whether there is a torchvision.
_MODULES = _stand_in()
sys.modules.update(_MODULES)
try:
    import qwen_vl_utils.vision_process as qwen
finally:
    for _name in _MODULES:
        del sys.modules[_name]

smart_resize = qwen.smart_resize
smart_nframes = qwen.smart_nframes
calculate_video_frame_range = qwen.calculate_video_frame_range

REFUSALS = (AssertionError, ValueError, ZeroDivisionError)


def _reader(clip: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """What qwen-vl-utils' decord and torchcodec readers do, for a clip that is only described."""
    total, fps, height, width = clip["clip"]
    start, end, count = qwen.calculate_video_frame_range(clip, total, fps)
    kept = qwen.smart_nframes(clip, total_frames=count, video_fps=fps)
    indices = torch.linspace(start, end, kept).round().long().tolist()[:: clip.get("video_sample_num", 1)]
    frames = max(2, len(indices) // 2 * 2)  # our rule for the frames that a stride leaves
    indices = (indices * 2)[:frames] if len(indices) == 1 else indices[:frames]
    return torch.empty((len(indices), 3, height, width), device="meta"), {"frames_indices": indices}, fps


qwen.VIDEO_READER_BACKENDS["torchvision"] = _reader


def card(patch: int) -> ModelCard:
    """A model of this patch size, with qwen-vl-utils' own limits of an image, whose context limits nothing."""
    token = (2 * patch) ** 2
    least, most = qwen.IMAGE_MIN_TOKEN_NUM * token, qwen.IMAGE_MAX_TOKEN_NUM * token
    return ModelCard(name="oracle", context=qwen.MODEL_SEQ_LEN, min_pixels=least, max_pixels=most, patch_size=patch)


def clip_plan(
    total: int, fps: float, height: int, width: int, options: dict[str, Any], patch: int = 14
) -> tuple[Any, ...] | None:
    """(frame numbers, (height, width)) for a clip, or None where qwen-vl-utils refuses."""
    try:
        video, about = qwen.fetch_video(
            {"video": "clip", "clip": (total, fps, height, width), **options}, patch, return_video_metadata=True
        )
    except REFUSALS:
        return None
    return about["frames_indices"], tuple(video.shape[2:])


def list_size(images: list[Any], options: dict[str, Any], patch: int = 14) -> tuple[int, ...] | None:
    """(frames, height, width) for a list of PIL images, or None where qwen-vl-utils refuses."""
    try:
        video = qwen.fetch_video({"video": images, **options}, patch)
    except (*REFUSALS, RuntimeError):  # RuntimeError: images of different sizes cannot be stacked
        return None
    return video.shape[0], *video.shape[2:]


def image_size(image: Any, options: dict[str, Any], patch: int = 14) -> tuple[int, int] | None:
    """(height, width) for a PIL image, or None where qwen-vl-utils refuses."""
    try:
        width, height = qwen.fetch_image({"image": image, **options}, patch).size
    except REFUSALS:
        return None
    return height, width
