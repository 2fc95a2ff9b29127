"""Reads images and videos, and samples and resizes them for the model: uint8 [frames, height, width, 3], RGB.

Every error names the medium in one sentence and is BadMedia, BadRequest, TooLong or Unsupported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL.Image import Image as PillowImage

from ..errors import BadMedia, BadRequest
from ..frames import Frames
from . import images, limits, sizing, sophon_demo
from .clips import Sampled as Sampled
from .clips import read_clip
from .images import Image
from .resizing import resize
from .sizing import NO_OPTIONS, Budget, Options
from .sources import MAX_BYTES, about, jpeg_sequence, load

ImageSource: TypeAlias = "str | Path | bytes | PillowImage | npt.NDArray[np.uint8]"
VideoSource: TypeAlias = "str | Path | bytes | npt.NDArray[np.uint8] | Sequence[ImageSource]"


def read_image(
    source: ImageSource, options: Options = NO_OPTIONS, *, base: Path | None = None, budget: Budget | None = None
) -> Frames:
    """Read an image as one frame.

    Args:
        source: path, `file://` URL, bytes or data URL of an image file (see `images.decode`), a PIL image, or an
            array uint8 [height, width, 3], RGB.
        base: folder that a relative path starts from; the working directory without it.
        budget: counts the tokens; its card gives the size limits.
    """
    budget = budget or Budget()
    with about(source):
        image = _load(source, base)
        height, width = sophon_demo.image_size(image.shape[0], image.shape[1], options, budget)
        budget.spend(1, height, width)
        if options.resize_type in (None, "Origin"):
            return resize(image, height, width)[np.newaxis]
        return sophon_demo.resize(image, height, width, options.resize_type)[np.newaxis]


def read_video(
    source: VideoSource,
    options: Options = NO_OPTIONS,
    *,
    base: Path | None = None,
    budget: Budget | None = None,
) -> Sampled:
    """Read a video's sampled frames, whole groups of them (see `sizing.group_of`).

    Args:
        source: path, `file://` URL, bytes or data URL of a video file; or an array uint8 [frames, height, width, 3],
            RGB; or a list of images of one size. All frames of an array or a list are kept, and the last is repeated
            until they fill the last group. `fps` is their number per second.
        base, budget: as for `read_image`.
    """
    budget = budget or Budget()
    with about(source):
        source = jpeg_sequence(source) or source
        if isinstance(source, np.ndarray):
            video = _timed(_read_array(source, options, budget), options)
        elif isinstance(source, (list, tuple)):
            video = _timed(_read_list(source, options, base, budget), options)
        else:
            video = read_clip(load(source, base), options, budget)
        count, height, width, _ = video.frames.shape
        budget.spend(count, height, width)
        return video


def _load(source: Any, base: Path | None) -> Image:
    if isinstance(source, np.ndarray):
        return images.from_array(source)
    if isinstance(source, PillowImage):
        return images.from_pillow(source)
    data = load(source, base)
    if (len(data) if isinstance(data, bytes) else data.stat().st_size) > MAX_BYTES:
        raise BadMedia(f"The file is larger than {MAX_BYTES // 2**20} MiB.")
    return images.decode(data if isinstance(data, bytes) else data.read_bytes())


def _timed(frames: Frames, options: Options) -> Sampled:
    """`frames` with their times if `fps` is given. A repeated frame has the next time, as in qwen-vl-utils."""
    if options.fps is None:
        return Sampled(frames)
    if options.fps == 0 or math.isinf(len(frames) / options.fps):
        raise BadRequest(f"The fps of given frames must be above 0, not {options.fps:g}.")
    return Sampled(frames, tuple(at / options.fps for at in range(len(frames))), options.fps)


def _read_array(array: npt.NDArray[Any], options: Options, budget: Budget) -> Frames:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise BadRequest(
            f"A video's array must be uint8 [frames, height, width, 3], not {array.dtype} {list(array.shape)}."
        )
    count, height, width, _ = array.shape
    limits.check_size(height, width)
    count += -count % budget.group
    size = sizing.video_size(height, width, count, options, budget.card)
    budget.check(count, *size)
    frames = [resize(frame, *size) for frame in array]
    return np.stack(frames + frames[-1:] * (count - len(frames)))


def _read_list(sources: Sequence[ImageSource], options: Options, base: Path | None, budget: Budget) -> Frames:
    if not sources:
        raise BadMedia("A video needs at least one image.")
    count = len(sources) + -len(sources) % budget.group
    frames: list[Image] = []
    first = size = (0, 0)
    for source in sources:
        with about(source):
            image = _load(source, base)
            agreed = sizing.list_size(image.shape[0], image.shape[1], options, budget.card)
            if not frames:
                first = agreed
                size = sizing.video_size(*first, count, options, budget.card)
                budget.check(count, *size)
            elif agreed != first:
                raise BadMedia("Its size differs from the first image's; set resized_height and resized_width.")
            frames.append(resize(resize(image, *first), *size))
    frames += frames[-1:] * (count - len(frames))
    return np.stack(frames)
