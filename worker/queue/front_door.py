"""Reads the messages of a job that a backend enqueued with RQ's own `enqueue`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.jobs import ModelCard
from sailq.shared.media.messages import Prepared, prepare
from sailq.shared.media.parts import peek


def read_messages(messages: Any, card: ModelCard) -> Prepared:
    """Reads messages as `prepare` does. Their media must be data URLs or parts that `Client.upload` returned.

    Raises what `prepare` raises, BadRequest for media that are files or other URLs, and Unsupported if this worker
    cannot read media.
    """
    for message in messages if isinstance(messages, (list, tuple)) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            _check(part)
    try:
        return prepare(messages, card=card)
    except ImportError:  # the workers' container images have no packages for reading media
        raise Unsupported(
            "This worker cannot read images or videos: read them with Client.upload, and send the part that it returns."
        ) from None


def _check(part: Any) -> None:
    if isinstance(part, Mapping) and "blob" in part:
        return
    read = peek(part)
    if read is None or read.kind == "text":
        return
    sources = read.source if isinstance(read.source, (list, tuple)) else [read.source]
    if not all(isinstance(source, str) and source[:5].lower() == "data:" for source in sources):
        raise BadRequest(
            "A worker does not open files or URLs: send images and videos as data URLs, or as parts that "
            "Client.upload returns."
        )
