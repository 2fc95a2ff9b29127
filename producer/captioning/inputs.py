"""Reads the input of a batch: files, folders and globs, or the rows of a JSONL file."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.jobs import GenerationOptions
from sailq.shared.media.images import moves
from sailq.shared.media.parts import Part, peek
from sailq.shared.media.sources import is_named, local_path, name

from . import folders
from .folders import LeftOut
from .names import as_text, for_terminal

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".flv"}
    | {".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".dav"}
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"])
GIF = ".gif"
"""A GIF with several frames is a video, else an image."""


@dataclass(frozen=True)
class Clip:
    """One job of a batch.

    Attributes:
        index: place in the input, from 0.
        source: the names of its media, for people.
        messages: as the caller wrote them; checked when the clip's turn comes.
        base: folder that the media's paths start from.
        metadata: the other fields of its input, which its row repeats.
    """

    index: int
    source: str
    messages: Any
    base: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last message, for people."""
        parts = _parts(self.messages[-1])
        return " ".join(part.source for part in parts if part.kind == "text" and isinstance(part.source, str))

    @property
    def places(self) -> list[Path]:
        """The files of its media."""
        named = (one for medium in _media(self.messages) for one in medium)
        return [place for one in named if (place := _place(one, self.base)) is not None]

    def files(self) -> list[dict[str, Any]]:
        """The current state of its files: absolute `path`, `size` in bytes, `mtime` in seconds.

        The latter two are None for a missing file.
        """
        found: list[dict[str, Any]] = []
        for place in self.places:
            path = as_text(os.path.abspath(place))
            try:
                status = place.stat()
                found.append({"path": path, "size": status.st_size, "mtime": status.st_mtime})
            except OSError:
                found.append({"path": path, "size": None, "mtime": None})
        return found

    def request(self, model: str, options: GenerationOptions) -> str:
        """A fingerprint of what is asked: equal in every run for the same messages, model and options."""
        asked = json.dumps([model, options.model_dump(), self.messages], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:24]


def from_paths(
    paths: Sequence[str], prompts: Mapping[str, str], left_out: list[LeftOut] | None = None
) -> list[Clip]:
    """Makes a clip of each file. A folder gives the media in it, at any depth, in the order of their names.

    Each folder is read once, even if it is named several times or through links.

    Args:
        prompts: what to ask of a "video" and of an "image".
        left_out: gets the other files in the folders.

    Raises BadRequest for a folder or a pattern without media.
    """
    left_out = [] if left_out is None else left_out
    files: dict[str, str] = {}
    real = cache(os.path.realpath)
    for path in paths:
        for file in _expand(path, left_out):
            folder, name = os.path.split(file)
            files.setdefault(os.path.join(real(folder), name), file)
    left_out[:] = dict.fromkeys(left_out)
    return [_clip(index, file, prompts) for index, file in enumerate(files.values())]


def _clip(index: int, file: str, prompts: Mapping[str, str]) -> Clip:
    suffix = Path(file).suffix.lower()
    kind = "image" if suffix in IMAGE_SUFFIXES or (suffix == GIF and not moves(Path(file))) else "video"
    content = [{"type": kind, kind: file}, {"type": "text", "text": prompts[kind]}]
    return Clip(index, as_text(file), [{"role": "user", "content": content}])


def _expand(path: str, left_out: list[LeftOut]) -> list[str]:
    if os.path.isdir(path):
        found = folders.walk(path, _is_media)
        left_out += found.left_out
        if not found.files:
            reason = for_terminal(next((f": {one.reason} ({one.path})" for one in found.left_out if one.locked), ""))
            raise BadRequest(f"There are no videos and no images in {for_terminal(path)}{reason}.")
        return found.files
    if glob.has_magic(path) and not os.path.lexists(path):
        locked: list[LeftOut] = []
        names = folders.matches(path, locked)
        left_out += locked
        reason = for_terminal("".join(f": {one.reason} ({one.path})" for one in locked[:1]))
        if not names:
            raise BadRequest(f"Nothing matches {for_terminal(path)!r}{reason}.")
        files = [name for name in names if not os.path.isdir(name)]
        for name in names:
            if os.path.isdir(name):  # a pattern may match folders without media
                found = folders.walk(name, _is_media)
                left_out += found.left_out
                files += found.files
        if not files:
            raise BadRequest(f"There are no videos and no images in {for_terminal(path)}{reason}.")
        return sorted(files, key=Path)
    return [path]


def _is_media(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES | {GIF}


def from_messages(path: Path) -> list[Clip]:
    """Makes a clip of each row `{"messages": [...], ...}` of a JSONL file. Media paths start from the file's folder.

    `-` is standard input, whose media paths start from the working directory.

    Raises BadRequest that names the first invalid line.
    """
    standard = str(path) == "-"
    shown, file = ("standard input", "stdin") if standard else (for_terminal(str(path)), as_text(path.name))
    try:
        data = sys.stdin.buffer.read() if standard else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadRequest(f"{shown} cannot be read: {reason}.") from None
    clips: list[Clip] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"Line {number} of {shown} is not JSON: {error}.") from None
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
            raise BadRequest(f"Line {number} of {shown} is not a map with a list of messages.")
        messages = row.pop("messages")
        first = [medium[0] for medium in _media(messages) if medium]
        source = ", ".join(one if is_named(one) else name(one) for one in first) or f"{file}:{number}"
        clips.append(Clip(len(clips), as_text(source), messages, None if standard else path.parent, row))
    if not clips:
        raise BadRequest(f"There are no rows in {shown}.")
    return clips


def _media(messages: Any) -> Iterator[list[str]]:
    """For each medium of `messages`, its path or URL, or those of a list of images."""
    for message in messages if isinstance(messages, list) else ():
        for part in (part for part in _parts(message) if part.kind != "text"):
            sources = part.source if isinstance(part.source, (list, tuple)) else [part.source]
            yield [source for source in sources if isinstance(source, str)]


def _place(medium: str, base: Path | None) -> Path | None:
    """The file that a path or a `file://` URL names. None for other URLs and for invalid file names."""
    try:
        place = local_path(medium, base or Path()) if is_named(medium) else None
    except Unsupported:
        return None
    return place if place is not None and place.name and _can_be_a_name(str(place)) else None


def _can_be_a_name(path: str) -> bool:
    try:
        return "\0" not in os.fsdecode(os.fsencode(path))
    except UnicodeEncodeError:  # a surrogate that encodes no byte
        return False


def _parts(message: Any) -> list[Part]:
    """A message's parts, without invalid ones."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [content]
    return [part for one in parts if one is not None and (part := peek(one)) is not None]
