"""Patches, grids and their normalisation against transformers' processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qwen2vl import Oracle, image_patches, random_model, video_patches
from transformers.vision_utils import get_vision_position_ids

from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.patches import grid_positions, normalise, patchify

SIZES = [(28, 28), (84, 84), (84, 112), (140, 56), (224, 308)]
RESCALE, MEAN, STD = 1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _random_frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / np.ptp(theirs)
    print(f"\nfigure: patches against transformers' processor: {difference:.1e} of the range apart at most")
    assert difference <= 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_cut_as_transformers_cuts_it(size: tuple[int, int]) -> None:
    image = _random_frames(*size)
    theirs, grid = image_patches(image)
    patches, ours = patchify(image[None], 14, 2, 2)
    assert list(ours) == grid
    _agree(normalise(patches, RESCALE, MEAN, STD), theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", SIZES[:4])
def test_a_video_is_cut_as_transformers_cuts_it(count: int, size: tuple[int, int]) -> None:
    frames = _random_frames(count, *size)
    theirs, grid = video_patches(frames)
    patches, ours = patchify(frames, 14, 2, 2)
    assert list(ours) == grid
    _agree(normalise(patches, RESCALE, MEAN, STD), theirs)


def test_an_odd_last_frame_is_repeated() -> None:
    frames = _random_frames(3, 28, 56)
    doubled = np.concatenate([frames, frames[-1:]])
    assert np.array_equal(patchify(frames, 14, 2, 2)[0], patchify(doubled, 14, 2, 2)[0])


@pytest.mark.parametrize(("h", "w"), [(2, 2), (6, 8), (10, 4)])
def test_patch_positions_are_those_of_the_vision_tower(h: int, w: int) -> None:
    theirs = get_vision_position_ids(torch.tensor([[1, h, w]]), 2)
    assert np.array_equal(grid_positions(h, w, 2), theirs.numpy())


def test_the_normalisation_folded_into_the_vit_changes_nothing() -> None:
    """The net takes 0..255; transformers' tower takes normalised values; the embeddings are the same."""
    directory = random_model()
    engine, oracle, spec = Engine.load(directory, threads=1), Oracle(directory), ModelSpec.load(directory)
    patches, grid = patchify(_random_frames(3, 84, 112), 14, 2, 2)
    (ours,) = engine.runner.vision([(patches, grid)])
    values = torch.from_numpy(spec.family.pixel_values(patches))
    with torch.no_grad():
        theirs = oracle.model.model.visual(values, torch.tensor([grid])).pooler_output.numpy()
    difference = np.abs(ours[:, 0] - theirs).max() / np.ptp(theirs)
    print(f"\nfigure: patches against transformers' processor: {difference:.1e} of the range apart at most")
    assert difference <= 1e-5
