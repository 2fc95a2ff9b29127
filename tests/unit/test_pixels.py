"""Pixels as they reach the model, against qwen-vl-utils and transformers 4.57.1: resized, and after JPEG."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import release
from camera import camera_clip, drawn_on

from sailq.shared.frames import Frames, decode_frames, encode_frames
from sailq.shared.media import sizing
from sailq.shared.media.resizing import resize
from sailq.shared.media.sizing import Options
from sailq.worker.engine.patches import patchify

pytestmark = [pytest.mark.proof, pytest.mark.timeout(3600)]

MEAN = np.array((0.48145466, 0.4578275, 0.40821073)).reshape(3, 1)
STD = np.array((0.26862954, 0.26130258, 0.27577711)).reshape(3, 1)
MEDIA: list[tuple[str, tuple[int, int, int], dict[str, int]]] = [
    ("video", (4, 720, 1280), {"resized_height": 420, "resized_width": 644}),
    ("video", (4, 1080, 1920), {}),
    ("video", (2, 252, 336), {}),  # grows to 128 tokens
    ("video", (4, 480, 640), {"min_pixels": 784, "max_pixels": 50_000}),
    ("image", (1, 1080, 1920), {"max_pixels": 400_000}),
    ("image", (1, 300, 410), {}),
    ("image", (1, 40, 50), {}),  # grows to 4 tokens
    ("list", (3, 480, 640), {}),
    ("list", (2, 720, 1280), {"max_pixels": 200_000}),
]


def _resized(kind: str, frames: Frames, given: dict[str, Any]) -> Frames:
    """As the producer does it."""
    options, (height, width) = Options(**given), frames.shape[1:3]
    if kind == "image":
        return resize(frames[0], *sizing.image_size(height, width, options))[np.newaxis]
    if kind == "list":
        agreed = sizing.list_size(height, width, options)
        whole = [*frames, *([frames[-1]] if len(frames) % 2 else [])]
        frames = np.stack([resize(frame, *agreed) for frame in whole])
        height, width = agreed
    size = sizing.video_size(height, width, len(frames), options)
    return np.stack([resize(frame, *size) for frame in frames])


def _difference(frames: Frames, theirs: np.ndarray, grid: list[int]) -> npt.NDArray[np.float64]:
    """Of each value, as a share of the range."""
    patches, ours = patchify(frames, 14, 2, 2)
    assert list(ours) == grid
    values = theirs.reshape(len(theirs), 3, -1) * STD + MEAN
    return np.abs(patches.reshape(values.shape) / 255 - values).ravel()


def test_pixels_before_and_after_jpeg() -> None:
    clips = {str(number): drawn_on(camera_clip(*size, seed=number)) for number, (_, size, _) in enumerate(MEDIA)}
    asked = [(kind, str(number), given) for number, (kind, _, given) in enumerate(MEDIA)]
    before, after = [], []
    for (kind, name, given), (theirs, grid) in zip(asked, release.pixels(asked, clips), strict=True):
        frames = _resized(kind, clips[name], given)
        before.append(_difference(frames, theirs, grid))
        after.append(_difference(decode_frames(encode_frames(frames)[1], frames.shape[:3]), theirs, grid))
        print(f"{kind} {clips[name].shape[1:3]} {given}: {before[-1].mean():.3%}, {after[-1].mean():.2%}")
    means = [float(np.concatenate(one).mean()) for one in (before, after)]
    most = [max(float(medium.mean()) for medium in one) for one in (before, after)]
    print(f"\nfigure: pixels against qwen-vl-utils and transformers 4.57.1, mean difference: {means[0]:.3%} of the "
          f"range before JPEG, {means[1]:.2%} after; of the worst of {len(MEDIA)} media {most[0]:.3%}, {most[1]:.2%}")
    assert 0 < means[0] <= 0.003 and most[0] <= 0.003
    assert means[1] <= 0.01
