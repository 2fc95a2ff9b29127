"""Questions that are asked on the page: about an archived clip, or about a file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field

from sailq.shared.errors import BadRequest
from sailq.shared.jobs import MAX_TEXT_CHARACTERS, FramesPart, Message, parse
from sailq.shared.media.messages import Prepared
from sailq.shared.validation import StrictModel

from ...archive.caption import Caption
from ...archive.store import Archive
from ...openai_api.requests import ChatRequest

_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_STILLS = {b"heic", b"heix", b"heif", b"mif1", b"avif"}
"""Brands of ISO's file format for still images."""


class FileQuestion(StrictModel):
    """A question about a file.

    Attributes:
        medium: a data URL; None for a question without a file.
        type: what the file is, if the browser knows it. Browsers know the files of recorders by their names alone.
    """

    model: str
    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    medium: str | None = None
    type: Literal["image", "video"] | None = None

    def request(self) -> ChatRequest:
        name = f"{self.type or ('image' if _is_image(self.medium or '') else 'video')}_url"
        media = [] if self.medium is None else [{"type": name, name: {"url": self.medium}}]
        content = [*media, {"type": "text", "text": self.question}]
        return ChatRequest(model=self.model, messages=[{"role": "user", "content": content}], stream=True)


class Exchange(StrictModel):
    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    answer: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]


class ClipQuestion(StrictModel):
    """A question about an archived clip.

    Attributes:
        question: what follows the clip's answer; None asks its own question again.
        earlier: what was asked on the page between the two.
    """

    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)] | None = None
    earlier: Annotated[tuple[Exchange, ...], Field(max_length=64, strict=False)] = ()

    def request(self, caption: Caption) -> ChatRequest:
        named = {"camera": caption.camera, "source": caption.source}
        return ChatRequest(
            model=caption.model, messages=[{"role": "user", "content": self.question or caption.question or "?"}],
            stream=True, metadata={name: value for name, value in named.items() if value},
        )

    def prepared(self, caption: Caption, archive: Archive) -> Prepared:
        """The messages of the clip's job with its frames, its answer, and the new question. The job's earlier turns are
        not in them. Raises BadRequest if the frames are no longer kept."""
        blobs = {medium["blob"]: archive.clip(medium["blob"]) for medium in caption.media}
        kept = {digest: data for digest, data in blobs.items() if data is not None}
        if len(kept) < len(blobs):
            raise BadRequest("The frames of this clip are no longer kept.")
        messages = [parse(Message, message) for message in caption.messages]
        if not messages:  # a job of another program
            media = [parse(FramesPart, medium).model_dump() for medium in caption.media]
            messages = [_said("user", [*media, *_text(caption.question)])]
        if self.question is not None:
            messages.append(_said("assistant", _text(caption.text or "…")))
            for one in self.earlier:
                messages += [_said("user", _text(one.question)), _said("assistant", _text(one.answer))]
            messages.append(_said("user", _text(self.question)))
        return Prepared(tuple(messages), kept, vision_tokens=0)


def _is_image(url: str) -> bool:
    """Whether the data of a data URL begin as those of an image."""
    with suppress(ValueError):
        head = base64.b64decode(url.partition(",")[2][:64])
        return head.startswith(_IMAGES) or head[4:8] == b"ftyp" and head[8:12] in _STILLS or head[8:12] == b"WEBP"
    return False


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _said(role: str, parts: Sequence[Mapping[str, Any]]) -> Message:
    return parse(Message, {"role": role, "content": parts})
