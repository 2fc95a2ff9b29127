"""The frames blob: content-addressed, small, and checked before it is decoded."""

from __future__ import annotations

import hashlib
import tracemalloc

import cv2
import numpy as np
import pytest
from camera import camera_clip

from sailq.shared.codec import pack, unpack
from sailq.shared.errors import BadMedia, CodecError, SailqError
from sailq.shared.frames import MAX_BLOB_BYTES, blob_limit, decode_frames, encode_frames


def test_decoded_frames_are_similar_and_a_blob_is_named_by_its_content() -> None:
    clip = camera_clip(4, 84, 112)
    digest, blob = encode_frames(clip)
    assert digest == hashlib.sha256(blob).hexdigest() == encode_frames(clip)[0]
    back = decode_frames(blob, (4, 84, 112))
    assert back.shape == clip.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - clip).mean() < 4


def test_red_stays_red() -> None:
    clip = np.zeros((1, 56, 56, 3), np.uint8)
    clip[..., 0] = 200
    red, green, blue = decode_frames(encode_frames(clip)[1], (1, 56, 56))[0, 28, 28]
    assert red > 190 and green < 10 and blue < 10


def test_four_frames_of_420_by_644_take_at_most_256_kib() -> None:
    """A server with jemalloc gives a blob 256 KiB, or else 320, which would be more than a waiting job may take."""
    assert len(encode_frames(camera_clip(4, 420, 644))[1]) <= 256 * 1024


BLOB = encode_frames(camera_clip(2, 56, 84))[1]


@pytest.mark.parametrize("expected", [(3, 56, 84), (2, 84, 56), (1, 56, 84)])
def test_a_blob_that_does_not_match_the_job_is_refused(expected: tuple[int, int, int]) -> None:
    with pytest.raises(CodecError, match="do not match the job"):
        decode_frames(BLOB, expected)


def forged(**changes: object) -> bytes:
    return pack({**unpack(BLOB, MAX_BLOB_BYTES), **changes}, MAX_BLOB_BYTES)


def big_jpeg_header() -> bytes:
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = (30000).to_bytes(2, "big") * 2
    return bytes(jpeg)


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"not msgpack", pack([1], 10), forged(v=2), forged(type="job"), forged(jpeg=[]), forged(jpeg=[b"", b""]),
        forged(jpeg=[1, 2]), forged(jpeg=[b"\xff\xd8" + b"x" * 50] * 2), forged(jpeg=[big_jpeg_header()] * 2),
        forged(jpeg=[b"\xff\xd8\xff\xe0\x00\x00" * 9] * 2), BLOB[:-100],
    ],
)
def test_a_forged_blob_is_refused_with_the_typed_error(blob: bytes) -> None:
    with pytest.raises(SailqError):
        decode_frames(blob, (2, 56, 84))


def jpeg(height: int = 56, width: int = 84) -> bytes:
    return bytes(cv2.imencode(".jpg", camera_clip(1, height, width)[0])[1].tobytes())


def with_size(data: bytes, height: int, width: int) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def hidden(height: int, width: int) -> bytes:
    """Of `height` × `width` to those who skip a marker that has no length by the length that follows it; to a decoder,
    of 16000 × 16000."""
    large = with_size(jpeg(), 16_000, 16_000)[2:]
    small = b"\xff\xc0\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes(10)
    return b"\xff\xd8\xff\xe0\x00\x02\xff\x01" + len(large).to_bytes(2, "big") + large + small


def scans(count: int) -> bytes:
    """Scans of 10 bytes each, each of which makes a decoder process all pixels."""
    data = jpeg()
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * count + b"\xff\xd9"


def progressive() -> bytes:
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    return bytes(cv2.imencode(".jpg", camera_clip(1, 56, 84)[0], flags)[1].tobytes())


@pytest.mark.parametrize("data", [hidden(56, 84), scans(2), scans(1000), progressive()])
def test_a_jpeg_that_decoders_read_differently_or_slowly_is_refused(data: bytes) -> None:
    with pytest.raises(BadMedia, match="JPEG of 84 × 56"):
        decode_frames(forged(jpeg=[data] * 2), (2, 56, 84))


def test_the_orientation_of_a_jpeg_in_a_blob_is_ignored() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    data = b"\xff\xd8\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg()[2:]
    turned = decode_frames(forged(jpeg=[data] * 2), (2, 56, 84))
    np.testing.assert_array_equal(turned, decode_frames(forged(jpeg=[jpeg()] * 2), (2, 56, 84)))


@pytest.mark.parametrize("size", [(10**6, 10**6, 10**6), (768, 8176, 8176), (1, 30_000, 30_000), (2, 8176, 8176)])
def test_an_enormous_stated_size_allocates_nothing(size: tuple[int, int, int]) -> None:
    count, height, width = size
    small = with_size(jpeg(), min(height, 65_535), min(width, 65_535))[:200]
    blob = forged(size=list(size), jpeg=[small] * min(count, 768))
    tracemalloc.start()
    try:
        with pytest.raises(BadMedia):
            decode_frames(blob, size)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_blob_is_no_larger_than_its_frames_need() -> None:
    noise = np.random.default_rng(2).integers(0, 255, (2, 28, 28, 3), np.uint8)
    assert len(encode_frames(noise)[1]) < blob_limit((2, 28, 28)) < 20_000
    with pytest.raises(CodecError, match=str(blob_limit((1, 28, 28)))):
        decode_frames(forged(size=[1, 28, 28], jpeg=[bytes(20_000)]), (1, 28, 28))


@pytest.mark.parametrize("name", ["v", "type", "size", "jpeg"])
def test_a_blob_with_an_array_as_a_field_is_refused(name: str) -> None:
    with pytest.raises(SailqError):
        decode_frames(forged(**{name: np.ones(3)}), (2, 56, 84))


def test_a_jpeg_of_another_size_is_refused_by_its_header() -> None:
    with pytest.raises(BadMedia, match="Frame 0"):
        decode_frames(forged(jpeg=[big_jpeg_header()] * 2), (2, 56, 84))
