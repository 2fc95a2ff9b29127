"""Held-out samples of sailq-tiny as the messages of OpenAI's clients."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailq.producer.samples import TASKS
from sailq.producer.samples.dataset import sample

_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class Asked:
    """Messages, their true answer, and the size that the media are to have (vLLM's `mm_processor_kwargs`)."""

    messages: list[dict[str, Any]]
    answer: str
    size: dict[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        """What `extra_body` has for this question."""
        return {"mm_processor_kwargs": self.size, "media_io_kwargs": {"video": {"num_frames": 4}}}


def data_url(path: Path) -> str:
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def asked(task: str, folder: Path, number: int = 0) -> Asked:
    """A sample of a task, its media as data URLs. `number`: 0, 1, …; odd ones are Chinese."""
    found = sample(11, number * len(TASKS) + TASKS.index(task))
    names = []
    for place, medium in enumerate(found.media):
        path = folder / f"{task}-{number}-{place}.{'mp4' if medium.is_video else 'png'}"
        medium.write(path)
        names.append(data_url(path))
    height, width = found.media[0].resized if found.media else (84, 84)
    messages = [_message(message) for message in found.messages(names)]
    return Asked(messages, found.turns[-1][1], {"resized_height": height, "resized_width": width})


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_part(part) for part in content]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    return part if kind == "text" else {"type": f"{kind}_url", f"{kind}_url": {"url": part[kind]}}
