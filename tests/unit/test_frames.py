"""The frames blob: content-addressed, small, and checked before it is decoded."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest
from sailq.shared.codec import pack, unpack
from sailq.shared.errors import BadMedia, CodecError, SailqError
from sailq.shared.frames import MAX_BLOB_BYTES, decode_frames, encode_frames


def camera_clip(frames: int, height: int, width: int) -> np.ndarray:
    """A clip with a camera's smooth light and grain, uint8 [frames, height, width, 3]."""
    random = np.random.default_rng(5)
    light = cv2.resize(random.integers(30, 220, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 4, (frames, height, width, 3))
    return np.clip(light[None] + grain, 0, 255).astype(np.uint8)


def test_frames_come_back_close_and_the_name_is_the_content() -> None:
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


def test_a_waiting_four_frame_job_at_420_by_630_takes_at_most_200_kb() -> None:
    assert len(encode_frames(camera_clip(4, 420, 630))[1]) <= 200 * 1024


BLOB = encode_frames(camera_clip(2, 56, 84))[1]


@pytest.mark.parametrize("expected", [(3, 56, 84), (2, 84, 56), (1, 56, 84)])
def test_a_blob_that_is_not_what_the_job_states_is_refused(expected: tuple[int, int, int]) -> None:
    with pytest.raises(CodecError, match="not those that the job states"):
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


def test_a_jpeg_of_another_size_is_refused_by_its_header() -> None:
    with pytest.raises(BadMedia, match="Frame 0"):
        decode_frames(forged(jpeg=[big_jpeg_header()] * 2), (2, 56, 84))
