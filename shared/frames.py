"""Encodes frames for Redis: a sequence of JPEGs in one content-addressed blob."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from .codec import pack, unpack
from .errors import BadMedia, CodecError
from .jobs import MAX_FRAMES, Record, parse

MAX_BLOB_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 128_000 * 32 * 32 * 2
"""Frames × height × width of one blob: a token shows up to 32 × 32 pixels of two frames, and qwen-vl-utils sizes videos
for 128,000 tokens. 786 MB once decoded, which only a model with such a context asks for."""
QUALITY, SMALL_QUALITY, SMALL_PIXELS = 90, 95, 1 << 19
"""JPEG quality; the quality of small blobs; and the most pixels of a small blob, which is small at any quality. 4
frames of 420 × 644 with a camera's grain take 256 KB; `python -m tests.bench.jpeg` prints what each choice costs."""
CHROMA = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
"""Full chroma: halving it changes pixels and logits more than ten points of quality do."""

_START_OF_FRAME = 0xC0
"""The marker of a baseline frame, which `encode_frames` writes."""
_START_OF_SCAN = b"\xff\xda"
_SEGMENTS = {_START_OF_FRAME, 0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
"""Segments before a scan that have a length, and that all decoders skip in the same way."""

Frames = npt.NDArray[np.uint8]
"""uint8 [frames, height, width, 3], RGB."""


_Count = Annotated[int, Field(strict=True, ge=1)]


class _Blob(Record):
    """An unpacked blob. Lists become tuples, since msgpack has none; else it is as strict as other records."""

    v: Literal[1]
    type: Literal["frames"]
    size: Annotated[tuple[_Count, _Count, _Count], Field(strict=False)]
    jpeg: Annotated[tuple[Annotated[bytes, Field(strict=True)], ...], Field(max_length=MAX_FRAMES, strict=False)]


def encode_frames(frames: Frames) -> tuple[str, bytes]:
    """(sha256 hex of the blob, blob). `frames`: uint8 [frames, height, width, 3], RGB."""
    jpegs: list[bytes] = []
    count, height, width, _ = frames.shape
    quality = SMALL_QUALITY if count * height * width <= SMALL_PIXELS else QUALITY
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, CHROMA, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    for frame in frames:
        ok, buffer = cv2.imencode(".jpg", frame[:, :, ::-1], flags)
        if not ok:
            raise BadMedia("A frame could not be encoded as JPEG.")
        jpegs.append(buffer.tobytes())
    data = pack({"v": 1, "type": "frames", "size": [count, height, width], "jpeg": jpegs}, MAX_BLOB_BYTES)
    return hashlib.sha256(data).hexdigest(), data


def blob_limit(size: tuple[int, int, int]) -> int:
    """The most bytes of a blob of (frames, height, width). Noise at the highest quality takes 3.4 bytes a pixel."""
    count, height, width = size
    return min(MAX_BLOB_BYTES, 4096 + count * (1024 + 4 * height * width))


def decode_frames(data: bytes, expected: tuple[int, int, int]) -> Frames:
    """The blob's frames, uint8 [frames, height, width, 3] RGB.

    `expected`: (frames, height, width) as the job states them. All JPEGs' headers are read before any of their
    pixels, so that a forged size allocates nothing. Raises BadRequest or BadMedia.
    """
    count, height, width = expected
    if count * height * width > MAX_PIXELS:
        raise BadMedia(f"{count} frames of {width} × {height} are more than {MAX_PIXELS} pixels.")
    size, jpegs = read_jpegs(data, blob_limit(expected))
    if size != expected:
        raise CodecError("The frames of this blob do not match the job.")
    frames = np.empty((count, height, width, 3), np.uint8)
    for index, jpeg in enumerate(jpegs):
        # Ignore the EXIF orientation: a rotated frame would have another size.
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise BadMedia(f"Frame {index} of the blob cannot be decoded.")
        frames[index] = image[:, :, ::-1]
    return frames


def read_jpegs(data: bytes, limit: int = MAX_BLOB_BYTES) -> tuple[tuple[int, int, int], Sequence[bytes]]:
    """(frames, height, width) of a blob of at most `limit` bytes, and each frame as a JPEG of this size. Decodes none
    of them. Raises BadRequest or BadMedia."""
    blob = parse(_Blob, unpack(data, limit))
    count, height, width = blob.size
    if count * height * width > MAX_PIXELS:
        raise BadMedia(f"{count} frames of {width} × {height} are more than {MAX_PIXELS} pixels.")
    if len(blob.jpeg) != count:
        raise CodecError("The number of frames in this blob is not the number that it states.")
    for index, jpeg in enumerate(blob.jpeg):
        if _jpeg_size(jpeg) != (height, width):
            raise BadMedia(f"Frame {index} of the blob is not a JPEG of {width} × {height}.")
    return blob.size, blob.jpeg


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from a JPEG's start-of-frame segment (ITU T.81, B.2.2), or None.

    None, too, for data that a decoder may read differently, and for more than one scan: a scan of 10 bytes makes the
    decoder go over all pixels.
    """
    if data[:2] != b"\xff\xd8" or data.count(_START_OF_SCAN) != 1:
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] in _SEGMENTS:
        if data[at + 1] == _START_OF_FRAME:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
