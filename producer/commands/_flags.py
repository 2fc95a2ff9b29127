"""What `ask`, `chat`, `caption` and `bench` share: answer options, media options, media parts and default prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sailq.shared.errors import BadRequest
from sailq.shared.generation import GenerationOptions
from sailq.shared.media.options import Options
from sailq.shared.options import takes
from sailq.shared.structured_outputs import StructuredOutputs
from sailq.shared.validation import parse

from ..captioning.names import for_terminal

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
Schema = Annotated[
    Path | None,
    typer.Option(
        "--schema", metavar="FILE", rich_help_panel="Answer options",
        help="File with a JSON schema. The answer is JSON that fits it.",
    ),
]
Choice = Annotated[
    str | None,
    typer.Option(
        "--choice", metavar="A,B", rich_help_panel="Answer options",
        help="Texts separated by commas. The answer is one of them.",
    ),
]
MediaFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--media-from", metavar="HOST", show_default="none",
        help="Host that images and videos may be fetched from: a name (.example.com: all names below it), an address, "
        "or a network for addresses that are not public. Can be repeated.",
    ),
]
answers = takes(generation=GenerationOptions, media=Options)
"""A decorator that gives a command all answer options as `generation`, and all media options as `media`."""


def archive_age(flag: str) -> Any:
    """The option for how long an archive keeps captions."""
    return typer.Option(
        flag, metavar="DAYS", min=0.001, max=1e6, show_default="no limit",
        help="Delete each caption this many days after its job ended.",
    )


def archive_size(flag: str) -> Any:
    """The option for the size of an archive."""
    return typer.Option(
        flag, metavar="GIB", min=0.001, max=1e6,
        help="Maximum size of its contents. Above it, the oldest frames are deleted, then the oldest captions.",
    )


def check(
    generation: Mapping[str, Any], media: Mapping[str, Any], schema: Path | None = None, choice: str | None = None
) -> GenerationOptions:
    """The checked answer options. Raises BadRequest for an invalid answer or media option."""
    parse(Options, media)
    if ("resized_height" in media) != ("resized_width" in media):
        raise BadRequest("--resized-height and --resized-width must be given together.")
    if media.get("max_frames", 2) < 2:
        raise BadRequest("A video has at least two frames: give a --max-frames of 2 or more.")
    form = _form(schema, choice)
    if form is not None and "stop" in generation:
        raise BadRequest("--stop cannot be combined with --schema or --choice.")
    return parse(GenerationOptions, {**generation, "structured_outputs": form})


def _form(schema: Path | None, choice: str | None) -> StructuredOutputs | None:
    """The form that --schema or --choice asks for; None without them."""
    if schema is not None and choice is not None:
        raise BadRequest("--schema and --choice cannot be combined.")
    if choice is not None:
        texts = [text.strip() for text in choice.split(",")]
        if not all(texts):
            raise BadRequest("--choice takes texts separated by commas, such as yes,no.")
        return parse(StructuredOutputs, {"choice": texts})
    if schema is None:
        return None
    shown = for_terminal(str(schema))
    try:
        text = schema.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadRequest(f"--schema {shown} cannot be read: {reason}.") from None
    try:
        return parse(StructuredOutputs, {"json": text})
    except BadRequest as error:
        raise BadRequest(f"--schema {shown} {str(error).removeprefix('json: ')}") from None


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
