"""Rendered media for training, kept as JPEG frames as the service would send them.

Drawing a clip takes longer than training on it. So separate processes draw the media once, into shards that training
reads many times with new questions. A shard depends only on the seed and its number.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sailq.producer.samples import TRAINING_SEED
from sailq.producer.samples.dataset import NFRAMES, Medium, random_medium
from sailq.producer.samples.scene import Frame, Scene

SHARD = 1000
GRIDS = ((84, 84), (84, 112), (112, 84))
_GRID_SHARE = (0.6, 0.2, 0.2)
_REAL_CLIPS = 0.15
"""Share of clips that are written to MP4 and read back; the others get one JPEG round trip in its place."""


@dataclass(frozen=True)
class Entry:
    """One medium ready to train on: its scene, the size it was resized to, and its JPEG frames."""

    scene: Scene
    resized: tuple[int, int]
    is_video: bool
    frames: tuple[bytes, ...]

    def pixels(self) -> NDArray[np.uint8]:
        """RGB frames, uint8 [frames, height, width, 3]."""
        return np.stack([decode(frame) for frame in self.frames])


def decode(frame: bytes) -> NDArray[np.uint8]:
    """One JPEG as RGB, uint8 [height, width, 3]."""
    image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def sampled(total: int, nframes: int = NFRAMES) -> list[int]:
    """The frame numbers that qwen-vl-utils samples from a clip of `total` frames."""
    return [int(v) for v in np.linspace(0, total - 1, nframes).round()]


def fit(frame: Frame, resized: tuple[int, int]) -> Frame:
    """Resize to (height, width) by area when shrinking, else cubic. The shipped weights were trained on these.

    The producer resizes with antialiased bicubic, as qwen-vl-utils does; the model answers as well on its frames.
    """
    shrinks = resized[0] <= frame.shape[0] and resized[1] <= frame.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, resized[::-1], interpolation=method), np.uint8)


def encode(frame: Frame, quality: int = 95, *, full_chroma: bool = False) -> bytes:
    """A BGR frame as JPEG."""
    factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full_chroma else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    return cv2.imencode(".jpg", frame, options)[1].tobytes()


def read_clip(path: Path, nframes: int = NFRAMES) -> list[Frame]:
    """The sampled frames of a video file, BGR."""
    capture = cv2.VideoCapture(str(path))
    frames: list[Frame] = []
    while (step := capture.read())[0]:
        frames.append(np.asarray(step[1], np.uint8))
    capture.release()
    return [frames[index] for index in sampled(len(frames), nframes)]


def draw_shard(seed: int, number: int, *, video: bool) -> list[Entry]:
    """Draw `SHARD` media of one kind."""
    rng = np.random.default_rng([TRAINING_SEED + seed, number, int(video)])
    entries = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for _ in range(SHARD):
            grid = GRIDS[rng.choice(len(GRIDS), p=_GRID_SHARE)]
            medium = random_medium(rng, grid, video=video)
            full_chroma = bool(rng.integers(2))
            frames = [encode(fit(f, grid), full_chroma=full_chroma) for f in _source(rng, medium, Path(folder))]
            # A fresh copy of the scene, without the pixels it cached while drawing.
            entries.append(Entry(replace(medium.scene), grid, video, tuple(frames)))
    return entries


def _source(rng: np.random.Generator, medium: Medium, folder: Path) -> list[Frame]:
    if not medium.is_video:
        return [medium.draw(0)]
    if rng.random() < _REAL_CLIPS:
        path = folder / "clip.mp4"
        medium.write(path)
        return read_clip(path)
    frames = [medium.draw(index) for index in sampled(medium.frames)]
    quality = int(rng.integers(55, 96))
    return [np.asarray(cv2.imdecode(np.frombuffer(encode(f, quality), np.uint8), 1), np.uint8) for f in frames]
