"""Further inputs of the nets of deploy/models: grid positions and masks."""

from __future__ import annotations

import numpy as np

from .base import MASKED
from .logits import Float, Int


def grid_positions(h: int, w: int, merge: int = 2) -> Int:
    """int32 [h·w, 2]: row and column of a temporal grid's patches; each `merge` × `merge` group is contiguous."""
    rows, columns = np.mgrid[:h, :w].astype(np.int32)
    grid = np.stack([rows, columns], axis=-1).reshape(h // merge, merge, w // merge, merge, 2)
    positions: Int = grid.transpose(0, 2, 1, 3, 4).reshape(h * w, 2)
    return positions


def causal_mask(length: int) -> Float:
    """float32 [1, 1, length, length]: no token sees a later one."""
    return np.triu(np.full((length, length), MASKED, np.float32), 1)[None, None]


def past_mask(batch: int, columns: int, rows: Int, lengths: Int) -> Float:
    """float32 [batch, 1, 1, columns + 1]: row `rows[i]` sees its first `lengths[i]` columns; every row sees itself."""
    mask = np.full((batch, 1, 1, columns + 1), MASKED, np.float32)
    mask[..., -1] = 0
    mask[rows, 0, 0, :-1] = np.where(np.arange(columns) < lengths[:, None], 0, MASKED)
    return mask
