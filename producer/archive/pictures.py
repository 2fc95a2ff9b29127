"""The small picture of a clip."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

WIDTH, HEIGHT = 320, 240
"""The most pixels of a thumbnail's sides: a card on a screen of usual density."""
_QUALITY = 75


def thumbnail(jpegs: Sequence[bytes], size: tuple[int, int]) -> bytes | None:
    """A small JPEG of the middle one of a clip's frames. None if it cannot be decoded. `size`: (height, width)."""
    data = np.frombuffer(jpegs[len(jpegs) // 2], np.uint8)
    kind = cv2.IMREAD_REDUCED_COLOR_8 if min(size) >= 8 * WIDTH else cv2.IMREAD_COLOR
    picture = cv2.imdecode(data, kind | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        return None
    height, width = picture.shape[:2]
    scale = min(1.0, WIDTH / width, HEIGHT / height)
    small = cv2.resize(picture, (max(1, round(width * scale)), max(1, round(height * scale))),
                       interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    return jpeg.tobytes()
