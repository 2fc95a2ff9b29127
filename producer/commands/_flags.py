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
