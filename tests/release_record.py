"""What the original release answers to prompts that are always the same, and the record of it in tests/data:

    PYTHONPATH=. .venv/bin/python tests/release_record.py

`make test` compares sailq with the record. `make test-proofs` asks the release again, and more.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import release
from qwen2vl import Prompts

from sailq.shared.frames import Frames
from sailq.shared.jobs import Message
from sailq.worker.model_files.model_paths import resolve

RECORD = Path(__file__).parent / "data/release.json"
POSITIONS, RECORDED, GREEDY, LONG = 1000, 200, 200, 40
TOKENS = 24
"""Most of a greedy answer."""

Conversation = tuple[list[Message], dict[str, Frames]]


def position_prompts() -> Prompts:
    """Images and clips of up to 64 frames, mixed, several turns: the first 1,000 count."""
    return Prompts(11, range(2, 66, 2), Prompts.SMALL)


def greedy_prompts() -> list[Conversation]:
    """200: the last 40 have clips of 16 to 48 frames at small sizes."""
    short, long = Prompts(2026), Prompts(48, Prompts.LONG, Prompts.SMALL)
    conversations = [short.conversation() for _ in range(GREEDY - LONG)]
    while len(conversations) < GREEDY:
        messages, frames = long.conversation()
        if any(len(clip) >= min(Prompts.LONG) for clip in frames.values()):
            conversations.append((messages, frames))
    return conversations


def told(tokens: npt.NDArray[Any], positions: npt.NDArray[Any], delta: int) -> list[Any]:
    """A prompt's length, its delta, and a digest of its tokens and positions."""
    arrays = np.concatenate([tokens[None], positions]).astype("<i4")
    return [len(tokens), delta, hashlib.sha256(arrays.tobytes()).hexdigest()[:16]]


def main() -> None:
    model, prompts = resolve("sailq-tiny"), position_prompts()
    asked = [prompts.conversation()[0] for _ in range(RECORDED)]
    positions = {
        version: [told(one.tokens, one.positions, one.delta) for one in release.ask(version, model, asked, {})]
        for version in (release.FIRST, release.LAST)
    }
    assert positions[release.FIRST] == positions[release.LAST]
    conversations = greedy_prompts()
    frames = {name: clip for _, media in conversations for name, clip in media.items()}
    answers = release.ask(
        release.LAST, model, [messages for messages, _ in conversations], frames, max_new_tokens=TOKENS
    )
    record = {"positions": positions[release.LAST], "greedy": [one.answer for one in answers]}
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in record.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
