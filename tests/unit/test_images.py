"""Images of every kind that cameras and phones write."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from media_files import odd_png
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sailq.shared.errors import BadMedia
from sailq.shared.media import images
from sailq.shared.media.images import decode, moves

pillow_heif.register_heif_opener()
SUFFIXES = ("jpg", "png", "webp", "tif", "heic", "avif")
ORIENTATION = 0x0112


def corners() -> npt.NDArray[np.uint8]:
    """Red, green, blue and white quarters, row by row."""
    pixels = np.zeros((56, 84, 3), np.uint8)
    pixels[:28, :42], pixels[:28, 42:], pixels[28:, :42], pixels[28:, 42:] = (
        (220, 0, 0), (0, 220, 0), (0, 0, 220), (220, 220, 220)
    )
    return pixels


def saved(pixels: npt.NDArray[np.uint8], suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "jpeg", "tif": "tiff", "heic": "heif"}.get(suffix, suffix), **options)
    return file.getvalue()


def near(image: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], limit: int = 12) -> bool:
    """Whether the middles of the four quarters agree."""
    if image.shape != expected.shape:
        return False
    height, width = image.shape[:2]
    places = [(row * height // 4, column * width // 4) for row in (1, 3) for column in (1, 3)]
    return all(np.abs(image[at].astype(int) - expected[at]).max() <= limit for at in places)


@pytest.mark.parametrize("suffix", [*SUFFIXES, "bmp", "gif"])
def test_every_format_gives_the_picture(suffix: str) -> None:
    assert near(decode(saved(corners(), suffix)), corners())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_in_every_format(suffix: str, orientation: int) -> None:
    """EXIF 2.32, 4.6.4: where row 0 and column 0 of what is stored are shown."""
    upright = corners()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"exif": exif.tobytes() if suffix == "heic" else exif}
    assert near(decode(saved(np.ascontiguousarray(stored), suffix, **options)), upright)


def test_metadata_that_pillow_cannot_rewrite_do_not_break_an_image() -> None:
    """A resolution of -1/0 beside an orientation of 6."""
    orientation = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    resolution = b"\x1a\x01\x0a\0\x01\0\0\0\x26\0\0\0"  # at byte 38
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + orientation + resolution + bytes(4) + b"\xff\xff\xff\xff\0\0\0\0"
    jpeg = saved(np.rot90(corners()), "jpg")
    marked = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert near(decode(marked), corners())


def test_unreadable_metadata_do_not_break_an_image() -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n8\nno digits\n")
    assert near(decode(saved(corners(), "png", pnginfo=info)), corners())


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_damaged_header_is_reported_as_damage(suffix: str) -> None:
    with pytest.raises(BadMedia, match="it is damaged or cut short"):
        decode(saved(corners(), suffix)[:24])


def test_an_unsupported_tiff_compression_is_named() -> None:
    """Tag 259 is a short. Its value follows the tag, the type and the count."""
    lzw = saved(corners(), "tif", compression="tiff_lzw")
    known, webp = (struct.pack("<HHIH", 259, 3, 1, number) for number in (5, 50001))
    assert lzw.count(known) == 1
    with pytest.raises(BadMedia, match="damaged, or TIFF's webp is not supported"):
        decode(lzw.replace(known, webp))
    with pytest.raises(BadMedia, match="it is damaged or cut short"):
        decode(lzw[:-50])


def test_the_orientation_of_a_heic_is_applied_once(tmp_path: Path) -> None:
    """A phone writes the rotation to the container and also to EXIF, where it must not be applied again."""
    upright = corners()
    heif = pillow_heif.from_pillow(Image.fromarray(upright))
    heif.save(tmp_path / "a.heic", quality=95)
    assert near(decode((tmp_path / "a.heic").read_bytes()), upright)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_a_jpeg_without_its_end_marker_is_whole(options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (67, 131, 3), np.uint8)
    for pixels in (noise, corners(), np.zeros((64, 64, 3), np.uint8)):
        data = saved(pixels, "jpg", **options)
        assert data.endswith(b"\xff\xd9")
        assert np.array_equal(decode(data[:-2]), decode(data))
        assert np.array_equal(decode(data[:-2] + bytes(100)), decode(data))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.97])
def test_a_jpeg_that_lacks_more_than_its_end_marker_is_refused(keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (67, 131, 3), np.uint8)
    for options in ({}, {"progressive": True}):
        data = saved(noise, "jpg", **options)
        with pytest.raises(BadMedia, match="cut short"):
            decode(data[: int(len(data) * keep)])


def test_the_first_picture_of_several_is_taken(tmp_path: Path) -> None:
    first, second = Image.fromarray(corners()), Image.fromarray(corners()[::-1])
    for suffix in ("gif", "webp", "tiff", "png"):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second], **({"lossless": True} if suffix == "webp" else {}))
        assert near(decode(path.read_bytes()), corners()), suffix
        assert moves(path) == (suffix == "gif")
    first.save(tmp_path / "still.gif")
    assert not moves(tmp_path / "still.gif")


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.fromarray(corners()).convert("CMYK")
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"a.{suffix}"
        cmyk.save(path)
        assert near(decode(path.read_bytes()), corners(), 24), suffix


def test_sixteen_bits(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(56, dtype=np.uint16) * 4 * 257, 56).reshape(56, 56)
    expected = np.repeat((grey // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    for suffix in ("png", "tif"):
        assert cv2.imwrite(str(tmp_path / f"grey.{suffix}"), grey)
        assert np.array_equal(decode((tmp_path / f"grey.{suffix}").read_bytes()), expected), suffix
        colour = np.repeat(grey[:, :, None], 3, axis=2)
        assert cv2.imwrite(str(tmp_path / f"colour.{suffix}"), colour)
        assert np.array_equal(decode((tmp_path / f"colour.{suffix}").read_bytes()), expected), suffix


def tiff(samples: npt.NDArray[Any], bits: int, kind: int = 1, photometric: int = 1, planes: int = 1) -> bytes:
    """A TIFF of samples [height, width] or planes of them [planes, height, width], as they are stored."""
    height, width = samples.shape[-2:]
    size, parts = samples.nbytes // planes, range(planes)
    tags = {256: [width], 257: [height], 258: [bits] * planes, 259: [1], 262: [photometric], 277: [planes],
            278: [height], 284: [1 + (planes > 1)], 339: [kind] * planes,
            273: [8 + at * size for at in parts], 279: [size for _ in parts]}
    data, directory = samples.tobytes(), b""
    data += bytes(len(data) % 2)
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    values = b""
    for tag, numbers in sorted(tags.items()):
        packed = b"".join(struct.pack("<I" if tag in (273, 279) else "<H", number) for number in numbers)
        kept = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", end + len(values))
        values += packed if len(packed) > 4 else b""
        directory += struct.pack("<HHI", tag, 4 if tag in (273, 279) else 3, len(numbers)) + kept
    return (struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory
            + bytes(4) + values)


RAMP = np.repeat(np.arange(256, dtype=np.int64)[None], 4, 0)


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (tiff((RAMP * 0x1010101).astype("<u4"), 32), RAMP),
        (tiff((RAMP * 257).astype("<u4"), 32), RAMP),  # 16-bit values of an instrument
        (tiff((RAMP * 257).astype("<u2"), 16, photometric=0), 255 - RAMP),
        (tiff((RAMP * 257 - 2**15).astype("<i2"), 16, kind=2), np.maximum(RAMP - 128, 0)),
        (tiff((RAMP * 0x1010101 - 2**31).astype("<i4"), 32, kind=2), np.maximum(RAMP - 128, 0)),
    ],
    ids=["32 bits", "32 bits, small", "white is 0", "signed 16", "signed 32"],
)
def test_tiff_samples_of_more_than_8_bits_are_scaled_by_their_range(data: bytes, grey: npt.NDArray[np.int64]) -> None:
    assert np.abs(decode(data).astype(int) - grey[:, :, None]).max() <= 1


def test_a_tiff_of_twelve_bits_is_not_taken_for_sixteen() -> None:
    wide = (RAMP * 4095 + 127) // 255
    pairs = wide.reshape(4, 128, 2)
    packed = np.stack([pairs[:, :, 0] >> 4, (pairs[:, :, 0] & 15) << 4 | pairs[:, :, 1] >> 8, pairs[:, :, 1] & 255], 2)
    data = bytearray(tiff(packed.astype(np.uint8).reshape(4, 384), 12))
    at = data.index(struct.pack("<HHIH", 256, 3, 1, 384))
    data[at + 8 : at + 10] = struct.pack("<H", 256)
    assert np.abs(decode(bytes(data)).astype(int) - RAMP[:, :, None]).max() <= 1


@pytest.mark.parametrize(
    "data",
    [tiff(np.stack([RAMP] * 3).astype("<u2"), 16, photometric=2, planes=3), tiff(RAMP.astype("<f8"), 64, kind=3)],
    ids=["planes of 16 bits", "floats of 64 bits"],
)
def test_what_pillow_would_misread_is_refused(data: bytes) -> None:
    with pytest.raises(BadMedia):
        decode(data)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_large_texts_do_not_break_a_png(kind: bytes, late: bool) -> None:
    text = zlib.compress(bytes(2**21))
    body = kind + b"Comment\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = saved(corners(), "png")
    at = data.index(b"IEND") - 4 if late else 33
    assert np.array_equal(decode(data[:at] + chunk + data[at:]), corners())


def test_palettes(tmp_path: Path) -> None:
    palette = Image.fromarray(corners()).quantize(8)
    for suffix in ("png", "gif", "bmp", "tif"):
        path = tmp_path / f"a.{suffix}"
        palette.save(path)
        assert np.array_equal(decode(path.read_bytes()), np.asarray(palette.convert("RGB"))), suffix


@pytest.mark.parametrize("brightest", [1, 255])
def test_floats(tmp_path: Path, brightest: int) -> None:
    ramp = np.linspace(0, brightest, 56 * 56, dtype=np.float32).reshape(56, 56)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    expected = np.rint(np.linspace(0, 255, 56 * 56)).reshape(56, 56, 1)
    assert np.abs(decode((tmp_path / "a.tif").read_bytes()) - expected).max() <= 1


def test_warnings_are_left_to_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their filters are common to all threads, so none may set them while it decodes."""
    inside: list[object] = []
    upright = images._upright

    def look(image: Image.Image) -> object:
        inside.append((warnings.filters, list(warnings.filters)))
        return upright(image)

    monkeypatch.setattr(images, "_upright", look)
    before = warnings.filters, list(warnings.filters)
    data = odd_png(tmp_path / "odd.png").read_bytes()
    with pytest.warns(UserWarning, match="APNG"):
        decode(data)
    decode(saved(corners(), "png"))
    assert inside[1] == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadMedia, match="warnings are errors here: Invalid APNG"):
            decode(data)
