"""Makes samples from a seed: scenes, a conversation about them, and the files on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from .scene import Frame, Scene, random_scene
from .talk import IMAGE_TOPICS, LANGS, VIDEO_TOPICS, Lang, Turn, about, about_several, without_media

Task = Literal["image", "images", "video", "follow_up", "text"]
TASKS: tuple[Task, ...] = ("video", "image", "images", "follow_up", "text")
TRAINING_SEED = 1_000_000_000
"""Seeds from here on belong to the training of sailq-tiny; every smaller seed is held out."""
NFRAMES = 4

_GRIDS = ((84, 84), (84, 84), (84, 84), (84, 112), (112, 84))  # pixels after resizing, multiples of 28
_SHORT_SIDES = (112, 336)  # pixels of the source, both ends inclusive


class SampleError(Exception):
    """The samples cannot be made as asked, or a file cannot be written."""


@dataclass(frozen=True)
class Medium:
    """One image (`frames` is 1) or clip, with the size it is to be resized to."""

    scene: Scene
    frames: int
    fps: int
    resized: tuple[int, int]

    @property
    def is_video(self) -> bool:
        return self.frames > 1

    def draw(self, index: int) -> Frame:
        """Frame `index` of the source, uint8 BGR [height, width, 3]."""
        return self.scene.draw(index / max(1, self.frames - 1))

    def write(self, path: Path) -> None:
        """Write an MP4 clip or a PNG image.

        Raises:
            SampleError: OpenCV cannot write the file.
        """
        if not self.is_video:
            if not cv2.imwrite(str(path), self.draw(0)):
                raise SampleError(f"cannot write {path}")
            return
        size = (self.scene.width, self.scene.height)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, size)
        if not writer.isOpened():
            raise SampleError(f"cannot write {path}: OpenCV has no mp4v encoder here, or the folder is read-only")
        for index in range(self.frames):
            writer.write(self.draw(index))
        writer.release()


@dataclass(frozen=True)
class Sample:
    """A conversation whose media all come before the first question. The last answer is the expected one."""

    task: Task
    lang: Lang
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]

    def messages(self, names: list[str]) -> list[dict[str, Any]]:
        """Chat messages up to the last question; `names` are the media's paths, in order."""
        content = [_item(medium, name) for medium, name in zip(self.media, names, strict=True)]
        messages: list[dict[str, Any]] = []
        for question, answer in self.turns:
            content.append({"type": "text", "text": question})
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            content = []
        return messages[:-1]


def sample(seed: int, index: int) -> Sample:
    """Sample `index` of `seed`. The same two numbers always give the same pixels and text."""
    rng = np.random.default_rng([seed, index])
    return random_sample(rng, TASKS[index % len(TASKS)], LANGS[index // len(TASKS) % 2])


def random_sample(rng: np.random.Generator, task: Task, lang: Lang) -> Sample:
    """Draw one sample of a task."""
    if task == "text":
        return Sample(task, lang, (), (without_media(rng, lang),))
    kind = task if task != "follow_up" else ("video", "video", "image", "images")[rng.integers(4)]
    count = int(rng.integers(2, 4)) if kind == "images" else 1
    grid = _GRIDS[rng.integers(len(_GRIDS))]
    media = tuple(random_medium(rng, grid, video=kind == "video") for _ in range(count))
    topics = _topics(rng, kind, count, 2 if task == "follow_up" else 1)
    return Sample(task, lang, media, tuple(ask(rng, lang, topic, media) for topic in topics))


def random_medium(rng: np.random.Generator, grid: tuple[int, int], *, video: bool) -> Medium:
    """Draw an image or a clip of 1.5 to 2.5 seconds whose aspect ratio is that of `grid` (height, width)."""
    short = int(rng.integers(_SHORT_SIDES[0] // 2, _SHORT_SIDES[1] // 2 + 1)) * 2  # video codecs need even numbers
    height, width = (round(short * side / min(grid) / 2) * 2 for side in grid)
    scene = random_scene(rng, height, width, moving=video)
    fps = int(rng.integers(8, 13))
    return Medium(scene, int(fps * rng.uniform(1.5, 2.5)) if video else 1, fps, grid)


def ask(rng: np.random.Generator, lang: Lang, topic: str, media: tuple[Medium, ...]) -> Turn:
    """A question of a topic about the media, and its true answer."""
    if len(media) > 1:
        return about_several(rng, lang, topic, [medium.scene for medium in media])
    return about(rng, lang, topic, media[0].scene)


def _topics(rng: np.random.Generator, kind: str, count: int, turns: int) -> list[str]:
    """Topics of a conversation. With two, the first answer never contains the second."""
    if kind == "images":
        places = [f"nth_image{place}" for place in rng.permutation(count)]
        if turns == 2:
            return ["count", "describe_images"] if rng.integers(4) == 0 else places[:2]
        return [("describe_images", places[0], "count")[rng.choice(3, p=[0.5, 0.4, 0.1])]]
    names = list(VIDEO_TOPICS if kind == "video" else IMAGE_TOPICS)
    if turns == 2:
        first, second = (str(name) for name in rng.permutation(names[1:])[:2])
        return [first, names[0] if rng.integers(3) == 0 else second]
    return [names[rng.choice(len(names), p=[0.4] + [0.6 / (len(names) - 1)] * (len(names) - 1))]]


def _item(medium: Medium, name: str) -> dict[str, Any]:
    kind = "video" if medium.is_video else "image"
    item: dict[str, Any] = {"type": kind, kind: name}
    item["resized_height"], item["resized_width"] = medium.resized
    if medium.is_video:
        item["nframes"] = NFRAMES
    return item


def write_samples(seed: int, count: int, out: Path) -> Iterator[dict[str, Any]]:
    """Write media and `truth.jsonl` under `out`, and yield each row once its files are there.

    Raises:
        SampleError: `seed` or `count` is out of range, or a file cannot be written.
    """
    if seed < 0 or count < 1:
        raise SampleError(f"seed must be 0 or more and count 1 or more, not {seed} and {count}")
    try:
        for folder in ("clips", "images"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        with (out / "truth.jsonl").open("w", encoding="utf-8") as truth:
            for index in range(count):
                item = sample(seed, index)
                names = [_name(medium, f"{index:04d}", place) for place, medium in enumerate(item.media)]
                for medium, name in zip(item.media, names, strict=True):
                    medium.write(out / name)
                row: dict[str, Any] = {"task": item.task, "lang": item.lang, "messages": item.messages(names)}
                row["answer"] = item.turns[-1][1]
                truth.write(json.dumps(row, ensure_ascii=False) + "\n")
                yield row
    except OSError as error:
        raise SampleError(f"cannot write samples to {out}: {error}") from error


def _name(medium: Medium, stem: str, place: int) -> str:
    return f"clips/{stem}.mp4" if medium.is_video else f"images/{stem}_{place}.png"
