"""Frames as they rest in Redis: JPEG, one after the other, in one content-addressed blob."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from .codec import pack, unpack
from .errors import BadMedia, CodecError

MAX_BLOB_BYTES = 64 * 1024 * 1024
JPEG_QUALITY = 90
"""A 4-frame clip of 420 × 630 with a camera's grain stays under 200 KB (tests/unit/test_frames.py)."""

Frames = npt.NDArray[np.uint8]
"""uint8 [frames, height, width, 3], RGB."""


def encode_frames(frames: Frames) -> tuple[str, bytes]:
    """(sha256 hex of the blob, blob). `frames`: uint8 [frames, height, width, 3], RGB."""
    jpegs: list[bytes] = []
    for frame in frames:
        ok, buffer = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise BadMedia("A frame could not be encoded as JPEG.")
        jpegs.append(buffer.tobytes())
    count, height, width, _ = frames.shape
    data = pack({"v": 1, "type": "frames", "size": [count, height, width], "jpeg": jpegs}, MAX_BLOB_BYTES)
    return hashlib.sha256(data).hexdigest(), data


def decode_frames(data: bytes, expected: Sequence[int]) -> Frames:
    """The blob's frames, uint8 [frames, height, width, 3] RGB.

    `expected`: (frames, height, width) as the job states them. Each JPEG's header is read before its
    pixels, so that a forged size allocates nothing. Raises CodecError or BadMedia.
    """
    value = unpack(data, MAX_BLOB_BYTES)
    if not isinstance(value, dict) or value.get("v") != 1 or value.get("type") != "frames":
        raise CodecError("This blob holds no frames of this protocol.")
    jpegs = value.get("jpeg")
    if value.get("size") != list(expected) or not isinstance(jpegs, list) or len(jpegs) != expected[0]:
        raise CodecError("This blob's frames are not those that the job states.")
    count, height, width = expected
    frames = np.empty((count, height, width, 3), np.uint8)
    for index, jpeg in enumerate(jpegs):
        if not isinstance(jpeg, bytes) or _jpeg_size(jpeg) != (height, width):
            raise BadMedia(f"Frame {index} of the blob is no JPEG of {width} × {height}.")
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise BadMedia(f"Frame {index} of the blob cannot be decoded.")
        frames[index] = image[:, :, ::-1]
    return frames


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from a JPEG's start-of-frame segment (ITU T.81, B.2.2), or None."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in {0xC0, 0xC1, 0xC2}:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
