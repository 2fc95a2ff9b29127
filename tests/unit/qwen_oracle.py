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
    if "video_sample_num" in clip:  # our rule for the frames that a stride leaves
        indices = indices * 2 if len(indices) == 1 else indices[: len(indices) // 2 * 2]
    sample_fps = len(indices) / max(count, 1e-6) * fps
    about = {"fps": fps, "frames_indices": indices}
    return torch.empty((len(indices), 3, height, width), device="meta"), about, sample_fps


qwen.VIDEO_READER_BACKENDS["torchvision"] = _reader

CARDS = {
    "qwen2.5-vl": ModelCard(name="a", context=qwen.MODEL_SEQ_LEN, min_pixels=3136, max_pixels=12845056, patch_size=14),
    "qwen3-vl": ModelCard(name="b", context=qwen.MODEL_SEQ_LEN, min_pixels=65536, max_pixels=16777216, patch_size=16),
}
"""Models with the limits of the published preprocessor_config.json, whose context limits nothing: LLM-TPU's copies,
models/Qwen2_5_VL/config and models/Qwen3_VL/config. Qwen2-VL's file has the limits of the first."""


def patch_of(card: ModelCard | None) -> int:
    return card.patch_size if card else 14


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


def times(about: dict[str, Any]) -> list[float]:
    """When each frame is shown, in seconds, as Qwen3-VL's processor counts it from the metadata of a clip or a list."""
    return [index / about["fps"] for index in about["frames_indices"]]


def clip_times(total: int, fps: float, options: dict[str, Any]) -> tuple[list[float], float]:
    """(when each frame is shown, frames a second) of a clip, which Qwen3-VL's and Qwen2.5-VL's processors get."""
    (_, about), sample_fps = qwen.fetch_video(
        {"video": "clip", "clip": (total, fps, 280, 420), **options}, return_video_metadata=True,
        return_video_sample_fps=True,
    )
    return times(about), sample_fps


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
