"""One coloured shape over a soft background, still or moving, drawn at any moment of its clip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import cos, pi, sin
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""BGR pixels, uint8 [height, width, 3], as OpenCV reads and writes them."""

Shape = Literal["circle", "square", "triangle", "star", "cross", "ring"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
Motion = Literal["left", "right", "up", "down", "closer", "away", "still"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: tuple[Colour, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
MOTIONS: tuple[Motion, ...] = ("left", "right", "up", "down", "closer", "away", "still")

_RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (212, 34, 36),
    "orange": (244, 134, 18),
    "yellow": (240, 222, 40),
    "green": (38, 160, 58),
    "blue": (38, 78, 214),
    "purple": (146, 48, 178),
    "white": (246, 246, 246),
    "black": (14, 14, 14),
}
_MARGIN = 0.03  # minimum distance from the edge, as a share of the short side
_ROAM = 16  # maximum shift of the noise, in pixels
_SHIFT = 4  # fractional bits of OpenCV's antialiased polygons
_STEPS: dict[Motion, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Pose:
    """Where the shape is: centre and radius in units of the frame's short side, turn in radians."""

    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """A shape, its colour and what it does between `start` (time 0) and `end` (time 1)."""

    shape: Shape
    colour: Colour
    motion: Motion
    height: int
    width: int
    start: Pose
    end: Pose
    rgb: tuple[int, int, int]
    look: int
    """Seed of the background and the noise, so that a scene redraws the same pixels."""

    @cached_property
    def _ground(self) -> NDArray[np.float32]:
        return _background(np.random.default_rng(self.look), self.height, self.width)

    @cached_property
    def _noise(self) -> NDArray[np.float32]:
        """Grey noise a little larger than the frame: each frame shows another part of it."""
        rng = np.random.default_rng(self.look + 1)
        shape = (self.height + _ROAM, self.width + _ROAM)
        sigma = np.float32(rng.choice([0.0, 2.0, 5.0]))
        grey = sigma * rng.standard_normal(shape, np.float32) if sigma else np.zeros(shape, np.float32)
        return np.asarray(cv2.merge([grey, grey, grey]), np.float32)

    def pose(self, time: float) -> Pose:
        """The shape's place at `time`, from 0 (first frame) to 1 (last frame)."""
        a, b = self.start, self.end
        x, y, radius, turn = (
            p + (q - p) * time for p, q in ((a.x, b.x), (a.y, b.y), (a.radius, b.radius), (a.turn, b.turn))
        )
        return Pose(x, y, radius, turn)

    def draw(self, time: float = 0.0) -> Frame:
        """Draw the frame at `time`, from 0 to 1."""
        short = min(self.height, self.width)
        pose = self.pose(time)
        mask = np.zeros((self.height, self.width), np.uint8)
        for value, points in zip((255, 0), _outline(self.shape, pose), strict=False):
            grid = np.round((points * short - 0.5) * (1 << _SHIFT)).astype(np.int32)
            cv2.fillPoly(mask, [grid], (value,), cv2.LINE_AA, _SHIFT)
        x, y, reach = (round(v * short) for v in (pose.x, pose.y, 1.5 * pose.radius))
        box = slice(max(0, y - reach), y + reach), slice(max(0, x - reach), x + reach)
        alpha = mask[box].astype(np.float32) * np.float32(1 / 255)
        image = self._ground.copy()
        image[box] *= cv2.merge([1 - alpha] * 3)
        image[box] += cv2.merge([alpha * np.float32(value) for value in reversed(self.rgb)])
        down, across = int(time * 977) % _ROAM, int(time * 661) % _ROAM
        noise = self._noise[down : down + self.height, across : across + self.width]
        return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)


def random_scene(rng: np.random.Generator, height: int, width: int, *, moving: bool) -> Scene:
    """Draw every attribute of a scene; `moving` allows all of `MOTIONS`, else the shape stands still."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = COLOURS[rng.integers(len(COLOURS))]
    motion: Motion = MOTIONS[rng.integers(len(MOTIONS))] if moving else "still"
    start, end = _path(rng, motion, width / min(height, width), height / min(height, width))
    jitter = rng.integers(-9, 10) if colour in ("white", "black") else rng.integers(-12, 13, 3)
    red, green, blue = (int(v) for v in np.clip(np.array(_RGB[colour]) + jitter, 0, 255))
    return Scene(shape, colour, motion, height, width, start, end, (red, green, blue), int(rng.integers(2**31)))


def _path(rng: np.random.Generator, motion: Motion, width: float, height: float) -> tuple[Pose, Pose]:
    turn = rng.uniform(-0.2, 0.2)
    last_turn = turn + rng.uniform(-0.1, 0.1)
    if motion in ("closer", "away"):
        small = rng.uniform(0.15, 0.19)
        large = rng.uniform(max(0.3, 1.8 * small), 0.42)
        x, y = (rng.uniform(large + _MARGIN, side - large - _MARGIN) for side in (width, height))
        near, far = Pose(x, y, large, turn), Pose(x, y, small, last_turn)
        return (far, near) if motion == "closer" else (near, far)
    if motion == "still":
        radius = rng.uniform(0.18, 0.34)
        x, y = (rng.uniform(radius + _MARGIN, side - radius - _MARGIN) for side in (width, height))
        return Pose(x, y, radius, turn), Pose(x, y, radius, turn)
    radius = rng.uniform(0.17, 0.23)
    edge = radius + _MARGIN
    ends = []
    for side, step in zip((width, height), _STEPS[motion], strict=True):
        free = side - 2 * edge
        travel = rng.uniform(0.6, 1.0) * free * step if step else rng.uniform(-0.03, 0.03)
        first = rng.uniform(max(0.0, -travel), min(free, free - travel)) + edge
        ends.append((first, first + travel))
    (x0, x1), (y0, y1) = ends
    return Pose(x0, y0, radius, turn), Pose(x1, y1, radius, last_turn)


def _outline(shape: Shape, pose: Pose) -> list[NDArray[np.float64]]:
    """Corner points, float64 [n, 2] as (x, y); a ring is its outer and then its inner edge."""
    if shape in ("circle", "ring"):
        outer = _polar([1.0] * 48, 0.0)
        parts = [outer, outer * 0.52] if shape == "ring" else [outer]
    elif shape == "square":
        parts = [_polar([1.1] * 4, pi / 4)]
    elif shape == "triangle":
        parts = [_polar([1.12] * 3, -pi / 2) + (0.0, 0.18)]
    elif shape == "star":
        parts = [_polar([1.12, 0.46] * 5, -pi / 2)]
    else:
        arm = 0.32
        corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
        parts = [np.concatenate([corner @ np.array([(cos(a), sin(a)), (-sin(a), cos(a))]) for a in _QUARTERS])]
    c, s = cos(pose.turn), sin(pose.turn)
    spin = np.array([(c, s), (-s, c)])
    return [part @ spin * pose.radius + (pose.x, pose.y) for part in parts]


_QUARTERS = (0.0, pi / 2, pi, 3 * pi / 2)


def _polar(radii: list[float], first: float) -> NDArray[np.float64]:
    angles = first + 2 * pi * np.arange(len(radii)) / len(radii)
    unit: NDArray[np.float64] = np.stack([np.cos(angles), np.sin(angles)], 1)
    return unit * np.array(radii, np.float64)[:, None]


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Middle luminance and little saturation, so that colours stand out: float32 [height, width, 3]."""
    base = rng.uniform(95, 160) + rng.uniform(-12, 12, 3)
    planes = [np.full((height, width), value, np.float32) for value in base]
    kind = rng.integers(3)
    if kind == 1:
        angle = rng.uniform(0, 2 * pi)
        across, down = (
            np.linspace(-1, 1, width, dtype=np.float32),
            np.linspace(-1, 1, height, dtype=np.float32),
        )
        slope = np.float32(cos(angle)) * across[None, :] + np.float32(sin(angle)) * down[:, None]
        planes = [plane + slope * np.float32(rise) for plane, rise in zip(planes, rng.uniform(8, 22, 3), strict=True)]
    ground = cv2.merge(planes)
    if kind == 2:
        coarse = rng.normal(0, 8, (int(rng.integers(4, 9)), int(rng.integers(4, 9)), 3)).astype(np.float32)
        cv2.add(
            ground,
            cv2.resize(np.clip(coarse, -18, 18), (width, height), interpolation=cv2.INTER_CUBIC),
            ground,
        )
    return np.asarray(ground, np.float32)
