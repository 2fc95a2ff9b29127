"""A caption: what the archive keeps of one ended job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Caption:
    """How one job ended.

    Attributes:
        id: its time in microseconds since the epoch, made unique. Captions are ordered by it.
        finished: when it ended, in seconds since the epoch by the server's clock.
        camera, source, question: empty if the job does not say.
        error: `code` and `message`; None if there is an answer.
        timings, usage: as in `Result`.
        messages: what was asked, as in `Job`; empty if the job was not sailq's own.
        media: of each image and video its `type`, `frames`, `height`, `width`, `times` (seconds), `fps` and `blob` (the
            digest of its clip).
    """

    id: int
    job: str
    conversation: str
    turn: int
    finished: float
    camera: str
    source: str
    question: str
    text: str
    reasoning: str
    finish_reason: str
    error: dict[str, str] | None
    model: str
    worker: str
    device: str
    timings: dict[str, float | None]
    usage: dict[str, int]
    tokens_per_second: float | None
    metadata: dict[str, Any]
    messages: Sequence[dict[str, Any]]
    media: Sequence[dict[str, Any]]

    @property
    def time(self) -> float:
        """Seconds since the epoch: when the clip was taken, if the job says so, else when it was submitted."""
        return self.id / 1e6


@dataclass(frozen=True)
class Entry:
    """A caption to be stored.

    Attributes:
        caption: its id may be taken; it then gets another.
        thumbnail: a JPEG.
        clips: bytes by digest.
    """

    caption: Caption
    thumbnail: bytes | None
    clips: Mapping[str, bytes]


NAME_CHARACTERS = 200
"""The most characters of a camera's or a source's name. Longer ones are cut."""
COLUMNS = [field.name for field in fields(Caption)]
_JSON = {"error", "timings", "usage", "metadata", "messages", "media"}


def to_row(caption: Caption) -> list[Any]:
    """The values of the `COLUMNS`."""
    return [_stored(name, value) for name, value in vars(caption).items()]


def from_row(row: Sequence[Any]) -> Caption:
    values = dict(zip(COLUMNS, row, strict=True))
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Caption(**values)


def _stored(name: str, value: Any) -> Any:
    if name in _JSON and value is not None:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value
