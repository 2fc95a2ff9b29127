"""What a batch is made of: files, folders and globs, or the rows of a JSONL file."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.errors import BadRequest
from ...shared.jobs import GenerationOptions
from ..media.images import moves

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".flv"}
    | {".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".dav"}
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"])
GIF = ".gif"
"""A video if it moves, else an image."""


@dataclass(frozen=True)
class Clip:
    """One job of a batch.

    Attributes:
        index: place in the input, from 0.
        source: its media, for people.
        messages: as the caller wrote them; checked when the clip's turn comes.
        base: folder that the media's paths start from.
        metadata: what else the input said of it; comes back in its row.
    """

    index: int
    source: str
    messages: Any
    base: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last message's text, for people."""
        content = self.messages[-1].get("content") if isinstance(self.messages[-1], dict) else None
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else []
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        return " ".join(text for text in texts if isinstance(text, str))

    def request(self, model: str, options: GenerationOptions) -> str:
        """Names what is asked: the same for the same messages, model and options, in every run."""
        asked = json.dumps([model, options.model_dump(), self.messages], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:24]


def from_paths(paths: Sequence[str], prompts: Mapping[str, str]) -> list[Clip]:
    """A clip for each file; folders give the media in them, at any depth, in the order of their names.

    `prompts`: what to ask of a "video" and of an "image". Raises BadRequest for a folder or a pattern that
    gives nothing.
    """
    files = dict.fromkeys(file for path in paths for file in _expand(path))
    return [_clip(index, file, prompts) for index, file in enumerate(files)]


def _clip(index: int, file: str, prompts: Mapping[str, str]) -> Clip:
    suffix = Path(file).suffix.lower()
    kind = "image" if suffix in IMAGE_SUFFIXES or (suffix == GIF and not moves(Path(file))) else "video"
    content = [{"type": kind, kind: file}, {"type": "text", "text": prompts[kind]}]
    return Clip(index, file, [{"role": "user", "content": content}])


def _expand(path: str) -> list[str]:
    if Path(path).is_dir():
        found = [
            str(file)
            for file in sorted(Path(path).rglob("*"))
            if file.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES | {GIF}
            and not file.name.startswith(".")
            and file.is_file()
        ]
        if not found:
            raise BadRequest(f"There are no videos and no images in {path}.")
        return found
    if glob.has_magic(path) and not Path(path).exists():
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise BadRequest(f"Nothing matches {path!r}.")
        return [file for match in matches for file in _expand(match)]
    return [path]


def from_messages(path: Path) -> list[Clip]:
    """A clip for each row `{"messages": [...], ...}` of a JSONL file; media paths start from its folder.

    Raises BadRequest that names the line which is no such row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadRequest(f"{path} cannot be read: {reason}.") from None
    clips: list[Clip] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"Line {number} of {path} is no JSON: {error}.") from None
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
            raise BadRequest(f"Line {number} of {path} is no map with a list of messages.")
        messages = row.pop("messages")
        source = ", ".join(_media(messages)) or f"{path.name}:{number}"
        clips.append(Clip(len(clips), source, messages, path.parent, row))
    if not clips:
        raise BadRequest(f"There are no rows in {path}.")
    return clips


def _media(messages: list[Any]) -> Iterator[str]:
    """The paths that `messages` show, as far as they are such."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            medium = part.get(kind) if kind in ("image", "image_url", "video") else None
            if isinstance(medium, dict):
                medium = medium.get("url")
            if isinstance(medium, list) and medium:
                medium = medium[0]
            if isinstance(medium, str):
                yield "data:" if medium.startswith("data:") else medium
