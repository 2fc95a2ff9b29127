"""Image data to pixels: uint8 [height, width, 3], RGB."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...shared.errors import BadMedia
from . import headers

Image = npt.NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

_log_lock = threading.RLock()
_log: Any = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 and OpenCV 4 have the log level
_NOISE = re.compile(rb"libpng |Corrupt JPEG|Premature end of JPEG|Invalid |Unsupported ")
"""How the lines of libpng and libjpeg begin."""


def decode(data: bytes) -> Image:
    """The image in a PNG, JPEG, BMP or WebP file's bytes.

    Transparency becomes white, grey becomes RGB, 16 bits become 8, and a JPEG's EXIF orientation is applied.
    Raises BadMedia for other data, damaged data, and more than `headers.MAX_PIXELS`.
    """
    kind = headers.image_kind(data)
    # Only IMREAD_UNCHANGED keeps transparency, and only the other flags apply the EXIF orientation.
    flags = cv2.IMREAD_UNCHANGED if kind in {"png", "webp"} else cv2.IMREAD_COLOR
    try:
        with _quiet():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise BadMedia("The image cannot be decoded: it is damaged or cut short.")
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.uint16)
        image = ((image[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.asarray(image[:, :, ::-1], np.uint8)


def resize(image: Image, height: int, width: int) -> Image:
    """INTER_AREA averages when shrinking, so nothing fine is skipped; INTER_CUBIC when a side grows."""
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    image = np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


@contextmanager
def without_log() -> Iterator[None]:
    """Keep OpenCV from logging what an error of ours says in one sentence."""
    with _log_lock:
        level = _log.getLogLevel()
        _log.setLogLevel(0)
        try:
            yield
        finally:
            _log.setLogLevel(level)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the decoders' C code from writing to stderr; what other threads write meanwhile is passed on."""
    with without_log(), tempfile.TemporaryFile() as sink:
        try:
            saved = os.dup(2)
        except OSError:  # a daemon without stderr
            yield
            return
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            for line in sink:
                if not _NOISE.match(line):
                    os.write(2, line)
