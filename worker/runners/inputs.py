"""The attention masks of the decoder's nets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import MASKED
from .logits import Float, Int


def causal_mask(starts: Sequence[int], length: int) -> Float:
    """float32 [1, 1, length, length]: no token sees a later one, or one of another prompt. `starts`: where each prompt
    begins, the first at 0; padding may follow the last."""
    mask = np.triu(np.full((length, length), MASKED, np.float32), 1)
    for start in starts:
        mask[start:, :start] = MASKED
    return mask[None, None]


def past_mask(batch: int, columns: int, rows: Int, lengths: Int) -> Float:
    """float32 [batch, 1, 1, columns + 1]: row `rows[i]` sees its first `lengths[i]` columns; every row sees itself."""
    mask = np.full((batch, 1, 1, columns + 1), MASKED, np.float32)
    mask[..., -1] = 0
    mask[rows, 0, 0, :-1] = np.where(np.arange(columns) < lengths[:, None], 0, MASKED)
    return mask
