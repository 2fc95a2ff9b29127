"""Resizing against what qwen-vl-utils asks for: Pillow for an image, torch for a clip. See also test_pixels.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import qwen_oracle as oracle
import torch
from camera import camera_clip, drawn_on
from PIL import Image
from torch.nn.functional import interpolate

from sailq.shared.media.reading import read_image, read_video
from sailq.shared.media.resizing import resize
from sailq.shared.media.sizing import Options


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 196), (196, 224)])
def test_an_image_is_resized_as_qwen_vl_utils_resizes_it(height: int, width: int, tmp_path: Path) -> None:
    pixels = drawn_on(camera_clip(1, 180, 200))[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = {"resized_height": height, "resized_width": width}
    theirs = oracle.qwen.fetch_image({"image": str(tmp_path / "a.png"), **given})
    assert np.array_equal(read_image(str(tmp_path / "a.png"), Options(**given))[0], np.asarray(theirs))


@pytest.mark.parametrize(("height", "width"), [(56, 84), (252, 140)])
def test_a_clips_frames_are_within_two_steps_of_torchs(height: int, width: int) -> None:
    """qwen-vl-utils asks torchvision for antialiased bicubic, and that asks torch."""
    frame = drawn_on(camera_clip(1, 180, 200))
    difference = np.abs(resize(frame[0], height, width).astype(int) - _torch(frame, height, width)[0])
    assert difference.max() <= 2 and difference.mean() < 0.05


def test_a_list_of_images_is_resized_twice(tmp_path: Path) -> None:
    """First each image to a grid of 56, then all of them together to their size."""
    frames = drawn_on(camera_clip(2, 900, 1000))
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for path, pixels in zip(paths, frames, strict=True):
        Image.fromarray(pixels).save(path)
    first = np.stack([np.asarray(oracle.qwen.fetch_image({"image": path}, 28)) for path in paths])
    ours = read_video(paths).frames
    difference = np.abs(ours.astype(int) - _torch(first, *ours.shape[1:3]))
    assert difference.max() <= 2 and difference.mean() < 0.05
    once = np.stack([resize(frame, *ours.shape[1:3]) for frame in frames])
    assert np.abs(ours.astype(int) - once).max() > 8  # one step gives another result


def _torch(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    resized = interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy().astype(int)
