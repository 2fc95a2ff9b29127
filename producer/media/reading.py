"""Images and videos from files, sampled and resized for the model: uint8 [frames, height, width, 3], RGB.

Every error names the medium in one sentence and is BadMedia, BadRequest, TooLong or Unsupported.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import BadMedia, BadRequest, SailqError, Unsupported
from ...shared.frames import Frames
from . import sizing
from .clips import Sampled as Sampled
from .clips import read_clip
from .images import Image, decode
from .resizing import resize
from .sizing import NO_OPTIONS, Budget, Options

MAX_IMAGE_BYTES = 256 * 1024 * 1024


def read_image(
    source: str, options: Options = NO_OPTIONS, *, base: Path | None = None, budget: Budget | None = None
) -> Frames:
    """The image as one frame.

    Args:
        source: path of an image file (see `images.decode`), with or without `file://`, or a
            `data:image/...;base64,` URL.
        base: folder that a relative path starts from; the working directory without it.
        budget: whose card gives the size limits, and where the tokens are counted.
    """
    budget = budget or Budget()
    with about(source):
        image = _load(source, base)
        height, width = sizing.image_size(image.shape[0], image.shape[1], options, budget.card)
        budget.spend(1, height, width)
        return resize(image, height, width)[np.newaxis]


def read_video(
    source: str | Sequence[str],
    options: Options = NO_OPTIONS,
    *,
    base: Path | None = None,
    budget: Budget | None = None,
) -> Sampled:
    """A video's kept frames, an even number of them.

    Args:
        source: path of a video file, or a list of images of one size. An odd list's last image is taken
            twice; the options of time have no effect on a list.
        base, budget: as for `read_image`.
    """
    budget = budget or Budget()
    with about(source):
        if isinstance(source, str):
            video = read_clip(_path(source, base), options, budget)
        else:
            video = Sampled(_read_list(source, options, base, budget))
        count, height, width, _ = video.frames.shape
        budget.spend(count, height, width)
        return video


@contextmanager
def about(source: Any) -> Iterator[None]:
    """Put the medium's name before the sentence of any error raised inside."""
    try:
        yield
    except SailqError as error:
        raise type(error)(f"{_name(source)}: {error}") from None


def _name(source: Any) -> str:
    if not isinstance(source, str):
        return f"list of {len(source)} images" if isinstance(source, (list, tuple)) else "medium"
    shown = source if source.isprintable() else repr(source)[1:-1]
    return shown if len(shown) <= 200 else f"{shown[:60]}…"


def _path(source: Any, base: Path | None) -> Path:
    """The regular file that `source` names."""
    if not isinstance(source, str):
        raise BadRequest(f"A medium is given by its path, not by a {type(source).__name__}.")
    place = source.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place):
        raise Unsupported("Only files are read: download it first and give its path.")
    path = (base or Path()) / place
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadMedia("There is no such file.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible name"
        raise BadMedia(f"The file cannot be opened ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise BadMedia("This is a directory, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise BadMedia("This is no regular file.")
    if status.st_size == 0:
        raise BadMedia("The file is empty.")
    if not os.access(path, os.R_OK):
        raise BadMedia("The file may not be read (permission denied).")
    return path


def _load(source: str, base: Path | None) -> Image:
    if isinstance(source, str) and source.startswith("data:image"):
        try:
            return decode(base64.b64decode(source.partition("base64,")[2], validate=True))
        except ValueError:
            raise BadMedia("This data URL holds no valid base64.") from None
    path = _path(source, base)
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise BadMedia(f"The file is larger than {MAX_IMAGE_BYTES // 2**20} MiB.")
    return decode(path.read_bytes())


def _read_list(sources: Any, options: Options, base: Path | None, budget: Budget) -> Frames:
    if not isinstance(sources, (list, tuple)):
        raise BadRequest(f"A video is a path or a list of images, not a {type(sources).__name__}.")
    if not sources:
        raise BadMedia("A video needs at least one image.")
    count = len(sources) + len(sources) % sizing.FRAME_FACTOR
    frames: list[Image] = []
    first = size = (0, 0)
    for source in sources:
        with about(source):
            image = _load(source, base)
            agreed = sizing.list_size(image.shape[0], image.shape[1], options)
            if not frames:
                first = agreed
                size = sizing.video_size(*first, count, options, budget.card)
                budget.check(count, *size)
            elif agreed != first:
                raise BadMedia("Its size is not the first image's; set resized_height and resized_width.")
            frames.append(resize(resize(image, *first), *size))
    frames += frames[-1:] * (count - len(frames))
    return np.stack(frames)
