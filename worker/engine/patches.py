"""Cuts frames into vision patches, in the order in which a ViT merges them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sailq.shared.frames import Frames

Grid = tuple[int, int, int]
"""(temporal grids, rows, columns) in patches: one line of transformers' `grid_thw`."""


def patchify(frames: Frames, patch: int, merge: int, temporal: int) -> tuple[Frames, Grid]:
    """Cut frames into patches as transformers' image and video processors do, but without resizing.

    Each `merge` × `merge` group is contiguous.

    The last frame is repeated until the number of frames divides by `temporal`: an image becomes two equal frames.

    Args:
        frames: uint8 [frames, height, width, 3], height and width multiples of `patch · merge`.
        patch: pixels along a side of a patch. `temporal`: its frames.

    Returns:
        uint8 [t·h·w, 3·temporal·patch²], channel before time before row before column in each, and (t, h, w).
    """
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % temporal, axis=0)])
    count, height, width, channels = frames.shape
    t, h, w = count // temporal, height // patch, width // patch
    tiles = frames.reshape(t, temporal, h // merge, merge, patch, w // merge, merge, patch, channels)
    ordered = tiles.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(t * h * w, channels * temporal * patch * patch), (t, h, w)


def grid_positions(h: int, w: int, merge: int) -> npt.NDArray[np.int32]:
    """int32 [h·w, 2]: row and column of a temporal grid's patches, in the order of `patchify`."""
    rows, columns = np.mgrid[:h, :w].astype(np.int32)
    grid = np.stack([rows, columns], axis=-1).reshape(h // merge, merge, w // merge, merge, 2)
    return np.asarray(grid.transpose(0, 2, 1, 3, 4).reshape(h * w, 2))


def normalise(
    patches: Frames, rescale: float, mean: Sequence[float], std: Sequence[float]
) -> npt.NDArray[np.float32]:
    """transformers' `pixel_values` of these patches: (p · rescale - mean) / std for each channel.

    Some nets, such as prebuilt bmodels, take these. The nets of deploy/models take raw `patches`, because this affine
    map is folded into their first layer.
    """
    shape = (1, len(mean), 1)
    per_channel = patches.reshape(len(patches), len(mean), -1) * rescale
    values = (per_channel - np.reshape(mean, shape)) / np.reshape(std, shape)
    return np.asarray(values, np.float32).reshape(patches.shape)
