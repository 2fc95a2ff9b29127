"""What a media file's first bytes say, read before any decoder sees the file.

An image's size comes from its header, so that a forged size allocates nothing. A video's container says how
long the file must be, so that one cut short is refused as such; decoders would quietly give what is left.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ...shared.errors import BadMedia

MAX_PIXELS = 100_000_000
"""Largest image or video frame that is decoded, height × width."""

_CUT = "The file is cut short: {} bytes are there, and its header promises {}."
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def image_kind(data: bytes) -> str:
    """png, jpeg, bmp or webp. Raises BadMedia for other data, and for sizes of 0 or past `MAX_PIXELS`."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        kind, size = "png", _big(data, 16, 4, 4)
    elif data[:3] == b"\xff\xd8\xff":
        kind, size = "jpeg", _big(data, _jpeg_frame(data) + 5, 2, 2)[::-1]
    elif data[:2] == b"BM":
        kind, size = "bmp", _bmp_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind, size = "webp", _webp_size(data)
    else:
        raise BadMedia("This is no image of a known kind (PNG, JPEG, BMP, WebP).")
    width, height = size
    if width == 0 or height == 0:
        raise BadMedia("The image's header is damaged.")
    check_size(height, width)
    # Nothing between the header and the end can look like the end marker; OpenCV 4 fills what is missing with grey.
    if kind == "jpeg" and data.find(b"\xff\xd9", _jpeg_frame(data)) < 0:
        raise BadMedia("The image is cut short.")
    return kind


def check_size(height: int, width: int) -> None:
    """Raises BadMedia for more than `MAX_PIXELS`."""
    if height * width > MAX_PIXELS:
        raise BadMedia(f"{width} × {height} pixels are more than {MAX_PIXELS // 10**6} megapixels.")


def video_seconds(path: Path) -> float | None:
    """The length an MP4 or MOV states, in seconds with its edit list applied; None for MKV, WebM and AVI.

    Raises BadMedia for another kind of file, for one cut short and for one without its index.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        head = _read(file, 0, 12)
        if head[:4] == b"\x1aE\xdf\xa3":
            _check_matroska(file, size)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            _check_avi(file, size)
        elif head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
            return _mp4_seconds(file, size)
        else:
            raise BadMedia("This is no video of a known kind (MP4, MOV, MKV, WebM, AVI).")
    return None


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _big(data: bytes, at: int, *widths: int) -> tuple[int, ...]:
    """Big-endian numbers of the given widths in bytes, one after the other; 0 past the end."""
    numbers = []
    for width in widths:
        numbers.append(int.from_bytes(data[at : at + width], "big"))
        at += width
    return tuple(numbers)


def _little(data: bytes, at: int, *widths: int) -> tuple[int, ...]:
    numbers = []
    for width in widths:
        numbers.append(int.from_bytes(data[at : at + width], "little"))
        at += width
    return tuple(numbers)


def _jpeg_frame(data: bytes) -> int:
    """Where the start-of-frame segment is (ITU T.81, B.2.2), which holds the size; the data's end without one."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            return at
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            at += 2
        else:
            at += 2 + _big(data, at + 2, 2)[0]
    return len(data)


def _bmp_size(data: bytes) -> tuple[int, ...]:
    if _little(data, 14, 4) == (12,):  # BITMAPCOREHEADER
        return _little(data, 18, 2, 2)
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return max(width, 0), abs(height)  # a negative height means rows from the top


def _webp_size(data: bytes) -> tuple[int, ...]:
    """(width, height), RFC 9649; zeros for an unknown chunk."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = _little(data, 24, 3, 3)
        return width + 1, height + 1
    if chunk == b"VP8L":
        bits = _little(data, 21, 4)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = _little(data, 26, 2, 2)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _check_matroska(file: BinaryIO, size: int) -> None:
    """The EBML header, then the Segment that holds all the rest (RFC 8794, RFC 9559)."""
    data = _read(file, 4, 8)
    length, width = _ebml_length(data)
    at = 4 + width + (length or 0)
    data = _read(file, at, 12)
    if data[:4] != b"\x18\x53\x80\x67":
        raise BadMedia("The Matroska file holds no segment.")
    length, width = _ebml_length(data[4:])
    if length is not None and at + 4 + width + length > size:
        raise BadMedia(_CUT.format(size, at + 4 + width + length))


def _ebml_length(data: bytes) -> tuple[int | None, int]:
    """(length, bytes it takes); None is "unknown", as live recordings have it."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    value = _big(data, 0, width)[0] & (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), width


def _check_avi(file: BinaryIO, size: int) -> None:
    """One RIFF chunk after another; a length of 0 was never filled in. A missing pad byte is no harm."""
    at = 0
    while (head := _read(file, at, 8))[:4] == b"RIFF":
        length = _little(head, 4, 4)[0]
        if at + 8 + length > size:
            raise BadMedia(_CUT.format(size, at + 8 + length))
        if length == 0:
            break
        at += 8 + length + length % 2


def _mp4_seconds(file: BinaryIO, size: int) -> float | None:
    """The top boxes (ISO/IEC 14496-12, 4.2) and the movie header in `moov`; None if it states no length."""
    seconds, index, at = None, False, 0
    while at + 8 <= size:
        kind, start, end = _box(file, at, size)
        if not kind.isalnum():
            break  # what some recorders append behind the last box
        if end > size:
            raise BadMedia(_CUT.format(size, end))
        if kind == b"moov":
            index = True
            seconds = _movie_seconds(file, start, end)
        at = end
    if not index:
        raise BadMedia("The file has no index (moov): it was cut short, or its recording never finished.")
    return seconds


def _movie_seconds(file: BinaryIO, at: int, end: int) -> float | None:
    while at + 8 <= end:
        kind, start, at = _box(file, at, end)
        if kind == b"mvhd":
            data = _read(file, start, 32)
            scale, length = _big(data, 20, 4, 8) if data[:1] == b"\x01" else _big(data, 12, 4, 4)
            return length / scale if scale and length else None
    return None


def _box(file: BinaryIO, at: int, end: int) -> tuple[bytes, int, int]:
    """(kind, where its content starts, where it ends) of the box at `at`, in a parent that ends at `end`."""
    head = _read(file, at, 16)
    length, kind, start = _big(head, 0, 4)[0], head[4:8], at + 8
    if length == 0:
        return kind, start, end
    if length == 1:
        length, start = _big(head, 8, 8)[0], at + 16
    return (kind if length >= start - at else b""), start, max(at + length, start)
