"""M-RoPE: each token's position in time, height and width (arXiv 2409.12191, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Box(NamedTuple):
    """The positions of a medium's tokens, or of a part of it, counted from its start.

    Attributes:
        times: of its temporal grids, not decreasing, from 0.
        rows, columns: of a temporal grid, in vision tokens.
    """

    times: Sequence[int]
    rows: int
    columns: int


def rope_index(vision: npt.NDArray[np.bool_], boxes: Sequence[Box]) -> tuple[npt.NDArray[np.int32], int]:
    """Positions of a prompt, equal to `get_rope_index` of transformers 4.45 to 4.57, the rule of the original release.

    Text counts up by one in all three. A medium's tokens take the next text position plus their place in its box. The
    text after it continues at the largest position so far plus one. transformers 5 continues at `max(rows, columns)`
    after the medium's start, which differs where a clip's times go further than that.

    Args:
        vision: bool [L], True where a token stands for a piece of a medium.
        boxes: in order. Other tokens lie between two of them.

    Returns:
        int32 [3, L], and the delta: the token at place p ≥ L has position p + delta in all three. A position that is
        more than an int32 holds is the largest int32: a message may state any times.

    Raises:
        ValueError: the vision tokens are not those of the boxes.
    """
    positions = np.zeros((3, len(vision)), np.int64)
    at = place = 0
    for times, rows, columns in boxes:
        start = place + int(np.argmax(vision[place:]))
        end = start + len(times) * rows * columns
        if not vision[start:end].all() or end > len(vision):
            raise ValueError("The vision tokens do not match the boxes.")
        positions[:, place:start] = np.arange(at, at + start - place)
        at += start - place
        grid = np.indices((len(times), rows, columns)).reshape(3, -1)
        positions[:, start:end] = np.stack([np.asarray(times)[grid[0]], *grid[1:]]) + at
        at += max(times[-1] + 1, rows, columns)
        place = end
    if vision[place:].any():
        raise ValueError("There are more vision tokens than the boxes have.")
    positions[:, place:] = np.arange(at, at + len(vision) - place)
    delta = int(positions.max(initial=-1)) + 1 - len(vision)
    return np.minimum(positions, np.iinfo(np.int32).max).astype(np.int32), delta
