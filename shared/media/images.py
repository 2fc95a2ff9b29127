"""Decodes image data into pixels: uint8 [height, width, 3], RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import (  # importing a plugin registers it
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from PIL import Image as pillow

from ..errors import BadMedia, BadRequest
from . import limits

Image = npt.NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "HEIF", "AVIF")
_JPEG_END = b"\xff\xd9"
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of one channel with 12, 16 or 32 bits."""
_PNG = b"\x89PNG\r\n\x1a\n"
_ASIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""PNG chunks that Pillow reads up to a limit, and that change no pixel."""
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_RARE = ("webp", "tiff_sgilog", "tiff_sgilog24", "tiff_thunderscan", "tiff_raw_16")
"""Compressions of TIFF, by Pillow's names, that its libtiff is built without or of which it reads few forms."""
_ORIENTATION = 0x0112
_TURNS = {
    2: pillow.Transpose.FLIP_LEFT_RIGHT,
    3: pillow.Transpose.ROTATE_180,
    4: pillow.Transpose.FLIP_TOP_BOTTOM,
    5: pillow.Transpose.TRANSPOSE,
    6: pillow.Transpose.ROTATE_270,
    7: pillow.Transpose.TRANSVERSE,
    8: pillow.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by its orientation (EXIF 2.32, 4.6.4)."""

pillow_heif.register_heif_opener(thumbnails=False)


def decode(data: bytes) -> Image:
    """The image in the bytes of a PNG, JPEG, BMP, WebP, TIFF, GIF, HEIC or AVIF file; the first one of several.

    Transparency becomes white, grey, CMYK and palettes become RGB, 16 bits become 8, and the orientation is applied.
    A JPEG may lack its end marker. Raises BadMedia for other data, damaged data, and more than `limits.MAX_PIXELS`.
    """
    if data.startswith(b"\xff\xd8") and _JPEG_END not in data[-1024:]:
        # A complete image ignores these bytes; a truncated one would be read into them.
        image, other = _decode(data + _JPEG_END), _decode(data + bytes(range(1, 255)) * 4 + _JPEG_END)
        if not np.array_equal(image, other):
            raise BadMedia("The image is cut short.")
        return image
    return _decode(data)


def from_pillow(image: pillow.Image) -> Image:
    """The pixels of a Pillow image of any mode, as `decode` would read its file."""
    with _refusals():
        return _upright(image)


def from_array(array: npt.NDArray[Any]) -> Image:
    """The pixels of an array uint8 [height, width, 3] RGB, [height, width, 4] RGBA or [height, width] grey. Raises
    BadRequest."""
    if array.dtype != np.uint8 or array.shape[2:] not in {(), (3,), (4,)} or array.ndim < 2 or 0 in array.shape:
        raise BadRequest(
            f"An image's array must be uint8 [height, width, 3], not {array.dtype} {list(array.shape)}."
        )
    limits.check_size(*array.shape[:2])
    if array.ndim == 2:
        return np.repeat(array[:, :, np.newaxis], 3, axis=2)
    return on_white(array) if array.shape[2] == 4 else array


def moves(path: Path) -> bool:
    """Whether a file is a GIF of several pictures."""
    try:
        with pillow.open(path, formats=["GIF"]) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # errors are raised when the file is read
        return False


def on_white(image: npt.NDArray[np.uint8]) -> Image:
    """An image uint8 [height, width, 4], RGBA, on a white background, as RGB."""
    alpha = image[:, :, 3:].astype(np.uint16)
    return ((image[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _decode(data: bytes) -> Image:
    with _refusals():
        try:
            return _upright(pillow.open(io.BytesIO(data), formats=_FORMATS))
        except ValueError:
            if not data.startswith(_PNG):
                raise
        return _upright(pillow.open(io.BytesIO(_bare(data)), formats=_FORMATS))


def _bare(png: bytes) -> bytes:
    """A PNG without its texts and its profile."""
    at, kept = len(_PNG), [_PNG]
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in _ASIDE:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _upright(image: pillow.Image) -> Image:
    if 0 in image.size:
        raise BadMedia("The image has no pixels.")
    limits.check_size(image.height, image.width)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8:  # Pillow would read each byte as a pixel
        raise BadMedia("TIFF images with separate planes of more than 8 bits are not supported.")
    try:
        image.load()
    except OSError:
        kind = image.info.get("compression")
        if image.format != "TIFF" or kind not in _RARE:
            raise
        raise BadMedia(f"The image cannot be decoded: it is damaged, or TIFF's {kind} is not supported.") from None
    turn = _TURNS.get(_orientation(image))
    pixels = _rgb(image)  # before the rotation, which drops the TIFF tags
    return pixels if turn is None else np.asarray(pillow.fromarray(pixels).transpose(turn))


def _orientation(image: pillow.Image) -> Any:
    """The orientation in the metadata; None if they cannot be read.

    `ImageOps.exif_transpose` is not used: it also rewrites the metadata, and raises if another value is invalid.
    """
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # each of Pillow's readers raises its own types
        return None


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns any error of Pillow into BadMedia. Its warnings are not filtered: a filter would apply to all threads."""
    try:
        yield
    except BadMedia:
        raise
    except MemoryError:
        raise BadMedia("There is not enough memory to decode the image.") from None
    except UnidentifiedImageError:
        raise BadMedia(
            "This is not a PNG, JPEG, BMP, WebP, TIFF, GIF, HEIC or AVIF image, or it is damaged or cut short, or its "
            "pixel format is not supported."
        ) from None
    except pillow.DecompressionBombError:
        raise BadMedia(f"The image has more than {limits.MAX_PIXELS // 10**6} megapixels.") from None
    except Warning as warning:
        raise BadMedia(f"The image cannot be read, because warnings are errors here: {warning}.") from None
    except Exception:  # each of Pillow's decoders raises its own types
        raise BadMedia("The image cannot be decoded: it is damaged or cut short.") from None


def _rgb(image: pillow.Image) -> Image:
    if image.mode in _WIDE:
        return np.repeat(_grey(image)[:, :, np.newaxis], 3, axis=2)
    if image.mode == "F":  # 32-bit samples range from 0 to 1, or from 0 to 255
        light = np.nan_to_num(np.asarray(image))
        light = np.clip(light * (255 if light.max() <= 1 else 1), 0, 255)
        return np.repeat(np.rint(light).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _grey(image: pillow.Image) -> npt.NDArray[np.uint8]:
    """uint8 [height, width] of an image of one wide channel; values below 0 are black.

    A TIFF's tags say what its samples mean (TIFF 6.0, sections 8 and 19). Pillow returns the samples as stored. 32-bit
    values that all fit into 16 bits are read as 16-bit values, as instruments write them.
    """
    tags = getattr(image, "tag_v2", {})
    unsigned = tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    bits = tags.get(_BITS, (16,))[0]
    values = np.asarray(image)
    if bits == 32 and unsigned:
        values = values.view(np.uint32)
    white = 2 ** (12 if bits == 12 else 16 if values.max() < 2**16 else 32) - 1
    values = np.clip(values.astype(np.int64), 0, white)
    if tags.get(_PHOTOMETRIC) == 0 and unsigned:
        values = white - values
    return ((values * 255 + white // 2) // white).astype(np.uint8)
