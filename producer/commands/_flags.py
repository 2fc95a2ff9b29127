"""The options that several commands share: what is asked, how media and answers are made, which server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

_ANSWER = "Options of the answer"
_MEDIA = "Options of videos and images"

StageUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        envvar="SAILQ_REDIS_URL",
        metavar="URL",
        show_default="an embedded server",
        help="A server of your own: redis://, rediss://, unix:// or redis+sentinel://. With a password, set the "
        "variable: all see command lines.",
    ),
]
"""`RedisUrl` of the commands that start a server where none is named."""

WAIT = typer.Option(
    "--wait", metavar="SECONDS", min=0.0, help="How long to wait for room where the queue is full."
)

System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message before the prompt.")]
Videos = Annotated[
    list[str] | None,
    typer.Option("--video", metavar="FILE", help="A video, of any common container and codec. May be repeated."),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image", metavar="FILE", help="An image: JPEG, PNG, HEIC, AVIF, WebP, TIFF, GIF or BMP. May be repeated."
    ),
]

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", metavar="N", show_default="128", rich_help_panel=_ANSWER, help="Longest answer, in tokens."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        show_default="0",
        rich_help_panel=_ANSWER,
        help="0 always takes the likeliest token; higher values vary more.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        show_default="1",
        rich_help_panel=_ANSWER,
        help="Sample from the likeliest tokens that together reach this probability.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        show_default="0, all",
        rich_help_panel=_ANSWER,
        help="Sample from the K likeliest tokens.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        metavar="R",
        show_default="1",
        rich_help_panel=_ANSWER,
        help="Above 1, tokens that were used become less likely.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", rich_help_panel=_ANSWER, help="Makes a sampled answer repeatable."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", rich_help_panel=_ANSWER, help="End the answer before this text. May be repeated."
    ),
]

NFrames = Annotated[
    int | None,
    typer.Option(
        "--nframes",
        metavar="N",
        rich_help_panel=_MEDIA,
        help="Frames to take from a video, evenly spread; not together with --fps.",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps",
        metavar="F",
        show_default="2",
        rich_help_panel=_MEDIA,
        help="Frames to take for each second of a video.",
    ),
]
MaxFrames = Annotated[
    int | None,
    typer.Option(
        "--max-frames",
        metavar="N",
        min=2,
        show_default="768",
        rich_help_panel=_MEDIA,
        help="Most frames of a video. With it, --nframes may be more than a video has; then all are taken.",
    ),
]
ResizedHeight = Annotated[
    int | None,
    typer.Option(
        "--resized-height",
        metavar="PIXELS",
        rich_help_panel=_MEDIA,
        help="Frame height, rounded to a multiple of 28; only with --resized-width.",
    ),
]
ResizedWidth = Annotated[
    int | None,
    typer.Option(
        "--resized-width", metavar="PIXELS", rich_help_panel=_MEDIA, help="Frame width, rounded to a multiple of 28."
    ),
]
MinPixels = Annotated[
    int | None,
    typer.Option(
        "--min-pixels",
        metavar="N",
        show_default="the model's",
        rich_help_panel=_MEDIA,
        help="Enlarge frames of fewer pixels (height × width).",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="N",
        show_default="the model's",
        rich_help_panel=_MEDIA,
        help="Shrink frames of more pixels (height × width).",
    ),
]
VideoStart = Annotated[
    float | None,
    typer.Option("--video-start", metavar="SECONDS", rich_help_panel=_MEDIA, help="Where in the video to begin."),
]
VideoEnd = Annotated[
    float | None,
    typer.Option("--video-end", metavar="SECONDS", rich_help_panel=_MEDIA, help="Where in the video to end."),
]
VideoSampleNum = Annotated[
    int | None,
    typer.Option(
        "--video-sample-num", metavar="N", rich_help_panel=_MEDIA, help="Of the frames taken, keep every N-th."
    ),
]

_VIDEO_ONLY = {"nframes", "fps", "max_frames", "video_start", "video_end", "video_sample_num"}

_ALL = 1e6
"""More frames a second than any video has."""


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value not in (None, [])}


def media_options(**flags: Any) -> dict[str, Any]:
    """The media options that were given. Raises BadRequest for one that would do nothing without its other half."""
    from sailq.shared.errors import BadRequest

    options = given(**flags)
    if ("resized_height" in options) != ("resized_width" in options):
        raise BadRequest("A size has two sides: give --resized-height and --resized-width together.")
    return options


def media_parts(videos: Iterable[str] | None, images: Iterable[str] | None) -> list[dict[str, Any]]:
    """Parts of a message's content: the videos, then the images, each kind in its order."""
    return [
        *({"type": "video", "video": path} for path in videos or ()),
        *({"type": "image", "image": path} for path in images or ()),
    ]


def default_prompt(parts: Iterable[Mapping[str, Any]]) -> str | None:
    """What to ask about media when nothing was asked; None without media."""
    kinds = [part["type"].removesuffix("_url") for part in parts]
    if "video" in kinds:
        return "Describe the video."
    if kinds:
        return "Describe the picture." if len(kinds) == 1 else "Describe the pictures."
    return None


def fill_in(messages: Any, options: Mapping[str, Any]) -> Any:
    """`messages`, with media `options` wherever their own leave them open; malformed ones stay as they are."""

    from sailq.shared.media.parts import peek
    from sailq.shared.media.sources import jpeg_sequence

    def part(value: Any) -> Any:
        read = peek(value)
        if read is None or read.kind == "text":
            return value
        kept = _VIDEO_ONLY if read.kind == "image" else set()
        open_ = {name: set_to for name, set_to in options.items() if name not in kept and value.get(name) is None}
        filled = {**value, **open_}
        is_file = isinstance(read.source, str) and jpeg_sequence(read.source) is None
        return _capped(filled) if read.kind == "video" and is_file and "max_frames" in options else filled

    def message(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("content"), list):
            return {**value, "content": [part(one) for one in value["content"]]}
        return value

    return [message(one) for one in messages] if isinstance(messages, list) else messages


def _capped(part: dict[str, Any]) -> dict[str, Any]:
    """A video file's options whose `nframes` is at most `max_frames` and what the video has.

    qwen-vl-utils refuses an `nframes` that is more than a video has, but takes all frames for a high `fps`.
    """
    wanted, most = part.get("nframes"), part["max_frames"]
    if part.get("fps") is not None or type(wanted) is not int or type(most) is not int or wanted < 2:
        return part
    capped = min(round(wanted / 2) * 2, most)
    return {**{key: value for key, value in part.items() if key != "nframes"}, "fps": _ALL, "max_frames": capped}
