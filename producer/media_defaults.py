"""Gives the media of messages the options that they do not set themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sailq.shared.media.parts import peek
from sailq.shared.media.sources import jpeg_sequence

_ALL = 1e6
"""More frames a second than any video has."""


def fill_in(messages: Any, options: Mapping[str, Any], kind: Literal["image", "video"] | None = None) -> Any:
    """`messages` with `options` added to each medium, of this `kind` if one is given, that does not set them itself.
    Malformed messages are not changed."""

    def part(value: Any) -> Any:
        read = peek(value)
        if read is None or read.kind == "text" or kind not in (None, read.kind):
            return value
        filled = {**value, **{name: set_to for name, set_to in options.items() if value.get(name) is None}}
        is_file = isinstance(read.source, str) and jpeg_sequence(read.source) is None
        return _capped(filled) if read.kind == "video" and is_file and "max_frames" in options else filled

    def message(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("content"), list):
            return {**value, "content": [part(one) for one in value["content"]]}
        return value

    return [message(one) for one in messages] if isinstance(messages, list) else messages


def _capped(part: dict[str, Any]) -> dict[str, Any]:
    """A video file's options, with `nframes` limited to `max_frames` and to the frames of the video.

    qwen-vl-utils refuses an `nframes` above the video's number of frames, but takes all frames for a high `fps`.
    """
    wanted, most = part.get("nframes"), part["max_frames"]
    if part.get("fps") is not None or type(wanted) is not int or type(most) is not int or wanted < 2:
        return part
    capped = min(round(wanted / 2) * 2, most)
    return {**{key: value for key, value in part.items() if key != "nframes"}, "fps": _ALL, "max_frames": capped}
