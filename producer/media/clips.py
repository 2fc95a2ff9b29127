"""Video files to frames: uint8 [frames, height, width, 3], RGB."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ...shared.errors import BadMedia
from ...shared.frames import Frames
from . import headers, sizing
from .images import resize, without_log
from .sizing import Budget, Options

# FFmpeg reports on stderr what we say in one sentence. OpenCV reads this once, at its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def read_clip(path: Path, options: Options, budget: Budget) -> Frames:
    """The frames of an MP4, MOV, MKV, WebM or AVI file that the options keep, the file's rotation applied.

    Raises BadMedia, BadRequest for options that the clip cannot meet, and TooLong before any frame is kept.
    """
    seconds = headers.video_seconds(path)
    total, fps, height, width = _probe(path)
    for _ in range(2):
        indices = sizing.frame_indices(options, total, fps)
        size = sizing.video_size(height, width, len(indices), options, budget.card)
        budget.check(len(indices), *size)
        frames, seen, span = _frames_at(path, indices, size)
        if seen > indices[-1]:
            return frames
        # The container is whole, yet the clip ends early. An edit list and a varying frame rate make the
        # stated count too large though the time is all there; where time is missing too, content is damaged.
        promised = min(total / fps, seconds or total / fps)
        if promised - span - 1 / fps > max(0.1 * promised, 2 / fps):
            raise BadMedia(f"The clip is damaged: only {seen} of its {total} frames can be read.")
        total = seen
    raise BadMedia("The clip gives another number of frames each time it is read.")


@contextmanager
def _capture(path: Path) -> Iterator[cv2.VideoCapture]:
    try:
        with without_log():
            capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    except (cv2.error, UnicodeError):
        raise BadMedia("The file cannot be opened as a video.") from None
    try:
        if not capture.isOpened():
            raise BadMedia("No video is found: it holds no frames, is damaged, or has an unknown codec.")
        yield capture
    finally:
        capture.release()


def _probe(path: Path) -> tuple[int, float, int, int]:
    """(frames, frames a second, height, width), rotation applied. Counts by decoding if nothing is stated."""
    with _capture(path) as capture:
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        if height <= 0 or width <= 0:
            raise BadMedia("The clip holds no frames.")
        headers.check_size(height, width)
        stated = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if 1 <= stated < 2**31:
            return int(stated), fps, height, width
        total = 0
        while capture.grab():
            total += 1
        return total, fps, height, width


def _frames_at(path: Path, indices: Sequence[int], size: tuple[int, int]) -> tuple[Frames, int, float]:
    """The frames of these ascending numbers, in one pass; how many were seen, and the seconds they span.

    `grab` in order is exact where seeking is not: many containers find only the nearest key frame.
    """
    frames = np.empty((len(indices), *size, 3), np.uint8)
    at, begin, end = 0, 0.0, 0.0
    with _capture(path) as capture:
        for number in itertools.count():
            if at == len(indices) or not capture.grab():
                break
            end = float(capture.get(cv2.CAP_PROP_POS_MSEC))
            if number == 0:
                begin = end
            if number == indices[at]:
                ok, image = capture.retrieve()
                if not ok:
                    break
                frame = resize(np.asarray(image, np.uint8), *size)[:, :, ::-1]
                while at < len(indices) and indices[at] == number:
                    frames[at] = frame
                    at += 1
        return frames, number, (end - begin) / 1000
