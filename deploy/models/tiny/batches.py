"""Makes tensors of conversations about pooled media. All frames of a batch have one size, so vision is one tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from sailq.producer.samples import COLOURS, MOTIONS, SHAPES, talk
from sailq.producer.samples.dataset import NFRAMES

from .network import MERGE, PAIR, PATCH, TOKEN
from .pool import GRIDS, Entry
from .vocabulary import SYSTEM

Exchange = tuple[Sequence[Entry], str, str]
"""New media, a question and its answer."""
IGNORED = -100


@dataclass
class Batch:
    """The input of one training step."""

    tokens: Tensor  # int64 [batch, length]
    positions: Tensor  # int64 [3, batch, length]
    targets: Tensor  # int64 [batch, length]: the next token if it is trained, else IGNORED
    pixels: Tensor | None  # uint8 [grids, 2, height, width, 3]
    labels: Tensor  # int64 [grids, 3]
    places: Tensor  # float32 [grids, 6]


class Writer:
    """Turns conversations into token rows."""

    def __init__(self, folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

        @lru_cache(maxsize=100_000)
        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text).ids)

        self.encode = encode

    def row(
        self, exchanges: Sequence[Exchange], *, last_only: bool = False
    ) -> tuple[list[int], list[int], NDArray[np.int64]]:
        """Tokens, targets and M-RoPE positions [3, length] of a conversation in Qwen2-VL's chat format."""
        start, end = TOKEN["<|im_start|>"], TOKEN["<|im_end|>"]
        newline = self.encode("\n")
        tokens = [start, *self.encode("system\n" + SYSTEM), end, *newline]
        learnt: list[bool] = [False] * len(tokens)
        spans: list[tuple[int, Entry]] = []
        for number, (media, question, answer) in enumerate(exchanges):
            tokens += [start, *self.encode("user\n")]
            for entry in media:
                pad = TOKEN["<|video_pad|>" if entry.is_video else "<|image_pad|>"]
                spans.append((len(tokens) + 1, entry))
                tokens += [TOKEN["<|vision_start|>"], *[pad] * _count(entry), TOKEN["<|vision_end|>"]]
            tokens += [*self.encode(question), end, *newline, start, *self.encode("assistant\n")]
            learnt += [False] * (len(tokens) - len(learnt))
            tokens += [*self.encode(answer), end]
            wanted = not last_only or number == len(exchanges) - 1
            learnt += [wanted] * (len(tokens) - len(learnt))
            tokens += newline
            learnt += [False] * len(newline)
        targets = [t if use else IGNORED for t, use in zip(tokens[1:], learnt[1:], strict=True)] + [IGNORED]
        return tokens, targets, _positions(len(tokens), spans)


def _grid(entry: Entry) -> tuple[int, int, int]:
    return (
        max(1, len(entry.frames) // PAIR),
        entry.resized[0] // PATCH // MERGE,
        entry.resized[1] // PATCH // MERGE,
    )


def _count(entry: Entry) -> int:
    return int(np.prod(_grid(entry)))


def _positions(length: int, spans: Sequence[tuple[int, Entry]]) -> NDArray[np.int64]:
    """M-RoPE positions: text counts up; a medium spans (time, row, column) from there."""
    out = np.empty((3, length), np.int64)
    done = now = 0
    for begin, entry in spans:
        out[:, done:begin] = now + np.arange(begin - done)
        now += begin - done
        grid = _grid(entry)
        done = begin + _count(entry)
        out[:, begin:done] = now + np.indices(grid).reshape(3, -1)
        now += max(grid)
    out[:, done:] = now + np.arange(length - done)
    return out


def pack(writer: Writer, talks: Sequence[Sequence[Exchange]], *, last_only: bool = False) -> Batch:
    """Pad conversations whose media all have one size into a batch."""
    rows = [writer.row(exchanges, last_only=last_only) for exchanges in talks]
    length = max(len(tokens) for tokens, _, _ in rows)
    tokens = np.full((len(rows), length), TOKEN["<|endoftext|>"], np.int64)
    targets = np.full((len(rows), length), IGNORED, np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    for place, (ids, wanted, where) in enumerate(rows):
        tokens[place, : len(ids)], targets[place, : len(ids)], positions[:, place, : len(ids)] = (
            ids,
            wanted,
            where,
        )
    entries = [entry for exchanges in talks for media, _, _ in exchanges for entry in media]
    pixels, labels, places = look(entries)
    first, second, third = (torch.from_numpy(part) for part in (tokens, positions, targets))
    return Batch(first, second, third, pixels, labels, places)


def look(entries: Sequence[Entry]) -> tuple[Tensor | None, Tensor, Tensor]:
    """The input of the vision stage: pixels [grids, 2, height, width, 3] of media of one size, labels [grids, 3],
    places [grids, 6]."""
    pixels, labels, places = [], [], []
    for entry in entries:
        frames = entry.pixels()
        pixels += list(frames.reshape(-1, PAIR, *frames.shape[1:]) if len(frames) > 1 else np.stack([frames[[0, 0]]]))
        scene = entry.scene
        poses = [scene.pose(k / (NFRAMES - 1)) for k in range(NFRAMES)] if entry.is_video else [scene.pose(0)] * 2
        for first, last in zip(poses[::2], poses[1::2], strict=True):
            labels.append((COLOURS.index(scene.colour), SHAPES.index(scene.shape), MOTIONS.index(scene.motion)))
            places.append([value for pose in (first, last) for value in (pose.x, pose.y, pose.radius)])
    seen = torch.from_numpy(np.stack(pixels)) if pixels else None
    return seen, torch.tensor(labels, dtype=torch.int64).view(-1, 3), torch.tensor(places).view(-1, 6)


class Teacher:
    """Draws media from the pool and makes conversations about them."""

    def __init__(self, seed: int, entries: Sequence[Entry], writer: Writer) -> None:
        self.rng = np.random.default_rng(seed)
        self.writer = writer
        self.pool: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            self.pool[entry.is_video, entry.resized].append(entry)

    def looks(self, count: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Grids for the vision stage: half the media are images, half are clips."""
        grid = self.grid()
        return look([self.medium(grid, video=bool(self.rng.integers(2))) for _ in range(count)])

    def batches(self, count: int, parts: int) -> list[Batch]:
        """One step's conversations, cut by length into parts so that little of a part is padding."""
        grid = self.grid()
        talks = [self._talk(grid) for _ in range(count)]
        talks.sort(key=lambda exchanges: len(self.writer.row(exchanges)[0]))
        size = count // parts
        return [pack(self.writer, talks[k : k + size]) for k in range(0, count, size)]

    def grid(self) -> tuple[int, int]:
        """A size for the media of a batch, (height, width)."""
        return GRIDS[self.rng.choice(len(GRIDS), p=(0.6, 0.2, 0.2))]

    def medium(self, grid: tuple[int, int], *, video: bool) -> Entry:
        """A clip or an image of the pool, of this size."""
        kept = self.pool[video, grid]
        return kept[self.rng.integers(len(kept))]

    def _talk(self, grid: tuple[int, int]) -> list[Exchange]:
        rng = self.rng
        lang = talk.LANGS[rng.integers(2)]
        kind = rng.choice(4, p=(0.42, 0.15, 0.28, 0.15))
        if kind == 3:
            return [((), *talk.without_media(rng, lang)) for _ in range(rng.integers(1, 4))]
        exchanges: list[Exchange] = []
        for _ in range(1 if rng.random() < 0.95 else 2):
            several = kind == 2
            media = [self.medium(grid, video=kind == 0) for _ in range(rng.integers(2, 4) if several else 1)]
            turns = int(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))
            for number, topic in enumerate(self._topics(media, turns)):
                if topic == "fact":
                    question, answer = talk.fact(rng, lang)
                elif several:
                    question, answer = talk.about_several(rng, lang, topic, [entry.scene for entry in media])
                else:
                    question, answer = talk.about(rng, lang, topic, media[0].scene)
                exchanges.append((media if number == 0 else (), question, answer))
        return exchanges

    def _topics(self, media: Sequence[Entry], turns: int) -> list[str]:
        if len(media) > 1:
            names = ["describe_images", "count", *(f"nth_image{place}" for place in range(len(media)))]
            weights = np.array([3.0, 0.6, *[1.5] * len(media)])
        else:
            names = list(talk.VIDEO_TOPICS if media[0].is_video else talk.IMAGE_TOPICS)
            weights = np.array([2.0, *[1.0] * (len(names) - 1)])
        topics = [
            str(t) for t in self.rng.choice(names, min(turns, len(names)), replace=False, p=weights / weights.sum())
        ]
        return [topic if number == 0 or self.rng.random() > 0.08 else "fact" for number, topic in enumerate(topics)]
