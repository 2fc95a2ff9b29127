"""What the original releases answer to prompts that are always the same, and the record of it in tests/data:

    PYTHONPATH=. .venv/bin/python tests/release_record.py [FAMILY...]

`make test` compares sailq with the record. `make test-proofs` asks the releases again, and more.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import release
from qwen2vl import Prompts, random_checkpoint_of

from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, Message
from sailq.worker.model_files.model_paths import resolve

RECORDS = {family: Path(__file__).parent / f"data/release-{family}.json" for family in release.RELEASES}
AUTHORITIES = {"qwen2_vl": release.LAST, "qwen2_5_vl": "4.49.0", "qwen3_vl": release.LAST}
"""The releases whose answers are recorded. The other release of Qwen2.5-VL differs: see `whole_seconds`."""
POSITIONS, RECORDED, GREEDY, LONG = 1000, 200, 200, 40
TOKENS = 24
"""Most of a greedy answer."""
UNITS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
"""Pixels along a side of a vision token."""
CONTEXT = 4096

Conversation = tuple[list[Message], dict[str, Frames]]


def model(family: str) -> Path:
    """The model that is asked: sailq-tiny, or a random checkpoint without nets."""
    return resolve("sailq-tiny") if family == "qwen2_vl" else random_checkpoint_of(family, context=CONTEXT)


def position_prompts(family: str = "qwen2_vl") -> Prompts:
    """Images and clips of up to 64 frames, mixed, several turns: the first 1,000 count."""
    sizes = Prompts.SMALL if family == "qwen2_vl" else (*Prompts.SMALL, *Prompts.SMALL, *Prompts.WINDOWS)
    lengths = range(1, 65) if family == "qwen3_vl" else range(2, 66, 2)
    return Prompts(11, lengths, sizes, unit=UNITS[family], timed=family != "qwen2_vl")


def greedy_prompts(family: str = "qwen2_vl") -> list[Conversation]:
    """200: the last 40 have clips of 16 to 48 frames at small sizes."""
    options: dict[str, Any] = {"unit": UNITS[family], "timed": family != "qwen2_vl"}
    sizes = Prompts.SIZES if family == "qwen2_vl" else (*Prompts.SIZES, *Prompts.WINDOWS)
    lengths = range(2, 8, 2) if family == "qwen2_5_vl" else Prompts.SHORT
    short = Prompts(2026, lengths, sizes, **options)
    long = Prompts(48, Prompts.LONG, Prompts.SMALL, **options)
    conversations = [short.conversation() for _ in range(GREEDY - LONG)]
    while len(conversations) < GREEDY:
        messages, frames = long.conversation()
        if any(len(clip) >= min(Prompts.LONG) for clip in frames.values()):
            conversations.append((messages, frames))
    return conversations


def whole_seconds(messages: Sequence[Message]) -> bool:
    """Whether a pair of frames of each video takes whole seconds. For Qwen2.5-VL, 4.57.1 drops a second's fraction.
    Neither the release that introduced it nor Qwen's training code nor vLLM does."""
    videos = [part for m in messages for part in m.content if isinstance(part, FramesPart) and part.type == "video"]
    return all((2 / (video.fps or 2.0)) % 1 == 0 for video in videos)


def frames_of(conversations: Sequence[Conversation]) -> dict[str, Frames]:
    """The frames of all conversations, by blob digest."""
    return {digest: clip for _, frames in conversations for digest, clip in frames.items()}


def recorded(family: str) -> Mapping[str, list[Any]]:
    """`positions`: as `told`, of the first prompts of `position_prompts`; `greedy`: answers to `greedy_prompts`."""
    record: dict[str, list[Any]] = json.loads(RECORDS[family].read_text())
    return record


def told(tokens: npt.NDArray[Any], positions: npt.NDArray[Any], delta: int) -> list[Any]:
    """A prompt's length, its delta, and a digest of its tokens and positions."""
    arrays = np.concatenate([tokens[None], positions]).astype("<i4")
    return [len(tokens), delta, hashlib.sha256(arrays.tobytes()).hexdigest()[:16]]


def main(families: Sequence[str]) -> None:
    for family in families or release.RELEASES:
        version = AUTHORITIES[family]
        prompts, conversations = position_prompts(family), greedy_prompts(family)
        asked = [prompts.conversation()[0] for _ in range(RECORDED)]
        found = release.ask(version, model(family), asked, {})
        positions = [told(one.tokens, one.positions, one.delta) for one in found]
        answers = release.ask(
            version, model(family), [messages for messages, _ in conversations], frames_of(conversations),
            max_new_tokens=TOKENS,
        )
        record = {"positions": positions, "greedy": [one.answer for one in answers]}
        lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in record.items()]
        RECORDS[family].write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
