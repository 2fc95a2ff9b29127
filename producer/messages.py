"""Chat messages with media, as callers write them, to the records and blobs of a job.

A caller's file paths end here: what travels holds the hashes of the encoded frames instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.errors import BadRequest, Unsupported
from ..shared.frames import Frames, encode_frames
from ..shared.jobs import FramesPart, Message, ModelCard, TextPart, parse
from .media import reading as media
from .media.sizing import Budget, Options

ROLES = ("system", "user", "assistant")
Encode = Callable[[Frames], tuple[str, bytes]]
"""Frames to (sha256 of the blob, blob): `frames.encode_frames`, or what ends with it."""


@dataclass(frozen=True)
class Prepared:
    """What to submit.

    Attributes:
        messages: for `Job.messages`.
        blobs: encoded frames by the sha256 that the messages refer to them by.
        vision_tokens: tokens of all media together.
        damaged_frames: frames of the videos that were found damaged; whole ones stand for them.
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
        messages: Qwen2-VL's chat format, which is also OpenAI's: `role` is system, user or assistant,
            `content` a text or a list of parts of type `text`, `image`, `image_url` or `video`. An image or a
            video takes the fields of `sizing.Options` beside its path.
        base: folder that relative paths start from; the working directory without it.
        card: the model that will answer. It gives the default sizes and the limits.
        encode: makes the blob of each medium's frames.

    Raises BadRequest for what breaks this format, Unsupported for other parts and for URLs, BadMedia for
    media that cannot be read, TooLong for media that alone exceed the model's context or patches.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("Messages are a list of at least one message.")
    budget = Budget(card)
    blobs: dict[str, bytes] = {}
    damaged: list[int] = []
    prepared = tuple(_message(message, base, budget, blobs, damaged, encode) for message in messages)
    return Prepared(prepared, blobs, budget.tokens, sum(damaged))


def _message(
    message: Any, base: Path | None, budget: Budget, blobs: dict[str, bytes], damaged: list[int], encode: Encode
) -> Message:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise BadRequest("A message is a map of role and content, and of nothing else.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadRequest(f"A message's role is one of {', '.join(ROLES)}, not {role!r}.")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)) or not content:
        raise BadRequest("A message's content is a text or a list of at least one part.")
    return Message(role=role, content=tuple(_part(part, base, budget, blobs, damaged, encode) for part in content))


def _part(
    part: Any, base: Path | None, budget: Budget, blobs: dict[str, bytes], damaged: list[int], encode: Encode
) -> TextPart | FramesPart:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise BadRequest("A part of a message's content is a map with a type.")
    kind = part["type"]
    if kind == "text":
        return parse(TextPart, dict(part))
    if kind not in {"image", "image_url", "video"}:
        raise Unsupported(f"Parts of type {kind!r} are not served; text, image, image_url and video are.")
    if kind not in part:
        raise BadRequest(f"A part of type {kind} has its path under {kind!r}.")
    source = _url(part[kind]) if kind == "image_url" else part[kind]
    options = _options({key: value for key, value in part.items() if key not in {"type", kind}}, source)
    if kind == "video":
        video = media.read_video(source, options, base=base, budget=budget)
    else:
        video = media.Sampled(media.read_image(source, options, base=base, budget=budget))
    damaged.append(video.damaged_frames)
    with media.about(source):
        digest, blob = encode(video.frames)
    blobs[digest] = blob
    count, height, width, _ = video.frames.shape
    return FramesPart(
        type="video" if kind == "video" else "image", blob=digest, frames=count, height=height, width=width,
        times=video.times, fps=video.fps,
    )


def _url(value: Any) -> Any:
    """The path in OpenAI's `{"url": path}`; qwen-vl-utils takes the bare path too."""
    if isinstance(value, Mapping):
        if set(value) != {"url"}:
            raise BadRequest("An image_url is a map of url, and of nothing else.")
        return value["url"]
    return value


def _options(fields: dict[str, Any], source: Any) -> Options:
    with media.about(source):
        for name in fields:
            if name not in Options.model_fields:
                raise BadRequest(f"There is no option {name!r}; there are {', '.join(Options.model_fields)}.")
        return parse(Options, fields)
