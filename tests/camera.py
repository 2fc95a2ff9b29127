"""Clips like those of a camera."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from sailq.shared.codec import pack, unpack
from sailq.shared.frames import MAX_BLOB_BYTES, Frames


def camera_clip(frames: int, height: int, width: int, seed: int = 5) -> Frames:
    """A clip with a camera's smooth light and grain, uint8 [frames, height, width, 3]."""
    random = np.random.default_rng(seed)
    light = cv2.resize(random.integers(30, 220, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 4, (frames, height, width, 3))
    return np.clip(light[None] + grain, 0, 255).astype(np.uint8)


def drawn_on(frames: Frames, seed: int = 6) -> Frames:
    """The frames with edges and text: lines and rectangles in all colours, and rows of small print."""
    random, drawn = np.random.default_rng(seed), frames.copy()
    height, width = frames.shape[1:3]
    for frame in drawn:
        for _ in range(12):
            colour = [int(value) for value in random.integers(0, 256, 3)]
            (left, right), (top, bottom) = random.integers(0, width, 2), random.integers(0, height, 2)
            cv2.line(frame, (int(left), int(top)), (int(right), int(bottom)), colour, 2)
            cv2.rectangle(frame, (int(left), int(bottom)), (int(left) + 50, int(bottom) + 35), colour, -1)
        for line in range(20, height, max(60, height // 6)):
            cv2.putText(frame, "Camera 7  2026-11-26 08:15:42", (8, line), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255,) * 3, 1)
    return drawn


def stamped(blob: bytes, stamp: bytes) -> tuple[str, bytes]:
    """(sha256 hex, blob): the same frames with `stamp` in a comment of the first JPEG, and so another clip's name."""
    fields = unpack(blob, MAX_BLOB_BYTES)
    first, *others = fields["jpeg"]
    comment = b"\xff\xfe" + (2 + len(stamp)).to_bytes(2, "big") + stamp
    data = pack({**fields, "jpeg": [first[:2] + comment + first[2:], *others]}, MAX_BLOB_BYTES)
    return hashlib.sha256(data).hexdigest(), data
