"""Resolves what a caller gives as a medium to an existing file or to bytes."""

from __future__ import annotations

import base64
import mimetypes
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from PIL.Image import Image as PillowImage

from ..errors import BadMedia, BadRequest, SailqError, Unsupported

MAX_BYTES = 256 * 1024 * 1024
"""The most bytes of an image, and of the data in a data URL."""

_DATA = re.compile(r"data:", re.IGNORECASE)
_FILE = re.compile(r"file:(//(localhost(?=/))?|(?=/))", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SPACE = str.maketrans("", "", " \t\n\f\r")


def load(source: Any, base: Path | None) -> Path | bytes:
    """The regular file that a path or a `file://` URL names, or the bytes given or held by a data URL.

    Args:
        source: str, os.PathLike, bytes, bytearray or memoryview.
        base: folder that a relative path starts from; the working directory without it.

    Raises BadMedia for a missing or unreadable medium, BadRequest for another type, Unsupported for other URLs.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise BadMedia("These bytes are empty.")
        return bytes(source)
    if isinstance(source, str) and _DATA.match(source):
        return from_data_url(source)
    if isinstance(source, str):
        return _file(local_path(source, base or Path()))
    if isinstance(source, os.PathLike):
        return _file((base or Path()) / os.fsdecode(source))
    raise BadRequest(
        f"An image or video must be a path, a URL, bytes, a PIL image or an array, not a {type(source).__name__}."
    )


def from_data_url(url: str) -> bytes:
    """The bytes of `data:[TYPE];base64,DATA` (RFC 2397), whatever its type says.

    White space is ignored and padding is optional, as in the Fetch standard's "forgiving-base64 decode"; percent
    escapes are read. Raises BadMedia.
    """
    head, comma, text = url.partition(",")
    if not comma:
        raise BadMedia("This data URL has no data.")
    if not head.rstrip().lower().endswith(";base64"):
        raise BadMedia("This data URL is not in base64.")
    text = text.translate(_SPACE)
    if "%" in text:
        text = unquote(text).translate(_SPACE)
    if len(text) % 4 == 0:
        text = text.removesuffix("=").removesuffix("=")
    if len(text) * 3 // 4 > MAX_BYTES:
        raise BadMedia(f"This data URL contains more than {MAX_BYTES // 2**20} MiB.")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise BadMedia("This data URL is not valid base64.") from None
    if not data:
        raise BadMedia("This data URL is empty.")
    return data


def jpeg_sequence(source: Any) -> list[str] | None:
    """The data URLs of the images in vLLM's `data:video/jpeg;base64,FRAME,FRAME,…`; None for anything else."""
    if not isinstance(source, str) or not source[:32].lower().startswith("data:video/jpeg;base64,"):
        return None
    return [f"data:image/jpeg;base64,{frame}" for frame in source.partition(",")[2].split(",")]


@contextmanager
def about(source: Any) -> Iterator[None]:
    """Prefix the sentence of any error raised inside with the medium's name.

    OSError becomes BadMedia: a file may vanish or fail at any time while it is read.
    """
    try:
        yield
    except SailqError as error:
        raise type(error)(f"{name(source)}: {error}") from None
    except OSError as error:
        raise BadMedia(f"{name(source)}: The file cannot be read ({error.strerror or error}).") from None


def is_data_url(source: str) -> bool:
    return _DATA.match(source) is not None


def is_named(source: Any) -> bool:
    """Whether a medium has a name of its own: it is a path or a URL."""
    return isinstance(source, (str, os.PathLike)) and not (isinstance(source, str) and _DATA.match(source))


def name(source: Any) -> str:
    """The name of a medium, for people: its path or URL, else its type."""
    if isinstance(source, (list, tuple)):
        return f"list of {len(source)} images"
    if isinstance(source, np.ndarray):
        return f"array {list(source.shape)}"
    if isinstance(source, PillowImage):
        return f"PIL image of {source.width} × {source.height}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    if not isinstance(source, str):
        return type(source).__name__
    if _DATA.match(source):
        source = source[:60].partition(",")[0] + ",…"
    shown = source if source.isprintable() else repr(source)[1:-1]
    return shown if len(shown) <= 200 else f"{shown[:60]}…"


def kind_of(source: Any) -> Literal["image", "video"]:
    """Whether a medium is an image or a video, by its name, its data URL's type or its shape. Raises BadRequest if
    unknown."""
    if isinstance(source, PillowImage) or (isinstance(source, np.ndarray) and source.ndim == 3):
        return "image"
    if isinstance(source, (list, tuple, np.ndarray)):
        return "video"
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        said = text[5:].partition(",")[0] if _DATA.match(text) else mimetypes.guess_type(text, strict=False)[0] or ""
        if (kind := said.partition("/")[0].lower()) in ("image", "video"):
            return "image" if kind == "image" else "video"
    raise BadRequest(f"Set the type of {name(source)}, image or video: its name does not show it.")


def local_path(source: str, base: Path) -> Path:
    """The path that a string names.

    After `file://` comes an optional host `localhost`, then a path with percent escapes (RFC 8089). Programs also write
    `f"file://{path}"` without escapes: if no file has the unescaped name, the name is used unchanged. The path may be
    relative, as in qwen-vl-utils and vLLM.
    """
    if found := _FILE.match(source):
        written = source[found.end() :]
        path = base / unquote(written, errors="surrogateescape")
        # os.path.exists instead of Path.exists, which raises for a name that is too long or in an inaccessible folder.
        return base / written if not os.path.exists(path) and os.path.exists(base / written) else path
    if found := _SCHEME.match(source):
        raise Unsupported(
            f"sailq reads only local files and does not fetch {found[1].lower()}:// addresses: download it first "
            "and give its path."
        )
    return base / source


def _file(path: Path) -> Path:
    """`path`, if it is a file that can be read."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadMedia("There is no such file.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid name"
        raise BadMedia(f"The file cannot be opened ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise BadMedia("This is a directory, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise BadMedia("This is not a regular file.")
    if status.st_size == 0:
        raise BadMedia("The file is empty.")
    if not os.access(path, os.R_OK):
        raise BadMedia("The file cannot be read (permission denied).")
    return path
