"""Converts a caller's chat messages with media to the records and blobs of a job.

Records contain hashes of the encoded frames, never the caller's file paths. The packages that read media are imported
with the first medium, because not every worker has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import BadRequest, SailqError
from ..frames import Frames, encode_frames
from ..jobs import FramesPart, Message, ModelCard, TextPart, parse
from .options import Options
from .parts import Part, read_part
from .sizing import Budget

Role = Literal["system", "user", "assistant"]
ROLES = get_args(Role)
Encode = Callable[[Frames], tuple[str, bytes]]
"""A function from frames to (sha256 of the blob, blob): `frames.encode_frames` or a wrapper of it."""


@dataclass(frozen=True)
class Prepared:
    """What to submit.

    Attributes:
        messages: for `Job.messages`.
        blobs: encoded frames by the sha256 that the messages refer to them by.
        vision_tokens: number of tokens of all media together.
        damaged_frames: number of damaged video frames, which were replaced by whole ones.
    """

    messages: tuple[Message, ...]
    blobs: dict[str, bytes]
    vision_tokens: int
    damaged_frames: int = 0


def prepare(
    messages: Sequence[Mapping[str, Any]],
    *,
    base: Path | None = None,
    card: ModelCard | None = None,
    encode: Encode = encode_frames,
) -> Prepared:
    """Check the messages, read and encode their media.

    Args:
        messages: the chat format of qwen-vl-utils and OpenAI: `role` is system, user or assistant, `content` a
            text or a list of parts, spelled as `parts` says, or as `Client.upload` has returned them. An image is what
            `reading.read_image` takes, a video what `reading.read_video` takes, with the fields of `Options` beside it.
        base: folder that relative paths start from; the working directory without it.
        card: the model that will answer. It gives the default sizes and the limits.
        encode: makes the blob of each medium's frames.

    Raises BadRequest for what breaks this format, Unsupported for other parts and for URLs, BadMedia for
    media that cannot be read, TooLong for media that alone exceed the model's context or patches.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("The messages must be a list of at least one message.")
    budget = Budget(card)
    blobs: dict[str, bytes] = {}
    damaged: list[int] = []
    read = [_message(message, number) for number, message in enumerate(messages, 1)]
    budget.automatic = sum(_is_automatic(part) for _, parts in read for part in parts)
    prepared = tuple(
        parse(Message, {
            "role": role,
            "content": tuple(
                _record(part, f"Part {place} of message {number}", base, budget, blobs, damaged, encode)
                for place, part in enumerate(parts, 1)
            ),
        })
        for number, (role, parts) in enumerate(read, 1)
    )
    return Prepared(prepared, blobs, budget.tokens, sum(damaged))


def _message(message: Any, number: int) -> tuple[Role, list[Part | FramesPart]]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise BadRequest("A message must be a map with role and content only.")
    role, content = message["role"], message["content"]
    known = isinstance(role, str) and role in ROLES
    if not known:
        told = repr(role[:40]) if isinstance(role, str) else f"a {type(role).__name__}"
        raise BadRequest(f"A message's role must be one of {', '.join(ROLES)}, not {told}.")
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, (list, tuple)) or not content:
        raise BadRequest("A message's content must be a text or a list of at least one part.")
    parts: list[Part | FramesPart] = []
    for place, part in enumerate(content, 1):
        with _at(f"Part {place} of message {number}"):
            uploaded = isinstance(part, Mapping) and "blob" in part
            parts.append(parse(FramesPart, dict(part)) if uploaded else read_part(part))
    return role, parts


def _is_automatic(part: Part | FramesPart) -> bool:
    if isinstance(part, FramesPart):
        return False
    max_side = part.options.get("max_side")
    return part.kind == "image" and isinstance(max_side, int) and max_side in (0, -1)


def _record(
    part: Part | FramesPart,
    place: str,
    base: Path | None,
    budget: Budget,
    blobs: dict[str, bytes],
    damaged: list[int],
    encode: Encode,
) -> TextPart | FramesPart:
    if isinstance(part, FramesPart):
        with _at(place):
            budget.spend(*part.size)
        return part
    source = part.source
    if part.kind == "text":
        with _at(place):
            return parse(TextPart, {"text": source, **part.options})
    from . import reading
    from .sources import about, is_named

    # Errors name a medium by its path, or by its place in the messages if it has no path.
    with nullcontext() if is_named(source) else _at(place):
        with about(source):
            options = _options(part.options)
        if part.kind == "video":
            video = reading.read_video(source, options, base=base, budget=budget)
        else:
            video = reading.Sampled(reading.read_image(source, options, base=base, budget=budget))
        damaged.append(video.damaged_frames)
        with about(source):
            digest, blob = encode(video.frames)
    blobs[digest] = blob
    count, height, width, _ = video.frames.shape
    return FramesPart(
        type=part.kind, blob=digest, frames=count, height=height, width=width, times=video.times, fps=video.fps
    )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the sentence of any error raised inside with the part's place."""
    try:
        yield
    except SailqError as error:
        raise type(error)(f"{place}: {error}") from None


def _options(fields: dict[str, Any]) -> Options:
    for name in fields:
        if name not in Options.model_fields:
            raise BadRequest(f"Unknown option {name!r}; the options are {', '.join(Options.model_fields)}.")
    return parse(Options, fields)
