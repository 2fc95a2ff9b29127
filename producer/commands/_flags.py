"""What `ask`, `chat`, `caption` and `bench` share: answer options, media options, media parts and default prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from sailq.shared.errors import BadRequest
from sailq.shared.generation import GenerationOptions
from sailq.shared.media.options import Options
from sailq.shared.options import takes
from sailq.shared.validation import parse

Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", min=0.0, help="Maximum time to wait for room in a full queue."),
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message before the prompt.")]
Videos = Annotated[
    list[str] | None,
    typer.Option("--video", metavar="FILE", help="Video file, in any common container and codec. Can be repeated."),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image", metavar="FILE", help="Image file: JPEG, PNG, HEIC, AVIF, WebP, TIFF, GIF or BMP. Can be repeated."
    ),
]
answers = takes(generation=GenerationOptions, media=Options)
"""A decorator that gives a command all answer options as `generation`, and all media options as `media`."""

_ALL = 1e6
"""More frames a second than any video has."""


def check(generation: Mapping[str, Any], media: Mapping[str, Any]) -> GenerationOptions:
    """The checked answer options. Raises BadRequest for an invalid answer or media option."""
    parse(Options, media)
    if ("resized_height" in media) != ("resized_width" in media):
        raise BadRequest("--resized-height and --resized-width must be given together.")
    if media.get("max_frames", 2) < 2:
        raise BadRequest("A video has at least two frames: give a --max-frames of 2 or more.")
    return parse(GenerationOptions, generation)


def media_parts(videos: Iterable[str] | None, images: Iterable[str] | None) -> list[dict[str, Any]]:
    """Message parts of the videos, then of the images, each in the given order."""
    return [
        *({"type": "video", "video": path} for path in videos or ()),
        *({"type": "image", "image": path} for path in images or ()),
    ]


def default_prompt(parts: Iterable[Mapping[str, Any]]) -> str | None:
    """The prompt for media if the user gave none; None without media."""
    kinds = [part["type"].removesuffix("_url") for part in parts]
    if "video" in kinds:
        return "Describe the video."
    if kinds:
        return "Describe the picture." if len(kinds) == 1 else "Describe the pictures."
    return None


def fill_in(messages: Any, options: Mapping[str, Any]) -> Any:
    """`messages` with `options` added to each medium that does not set them itself. Malformed messages are not
    changed."""

    from sailq.shared.media.parts import peek
    from sailq.shared.media.sources import jpeg_sequence

    def part(value: Any) -> Any:
        read = peek(value)
        if read is None or read.kind == "text":
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
