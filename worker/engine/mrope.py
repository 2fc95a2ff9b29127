"""M-RoPE: each token's position in time, height and width (arXiv 2409.12191, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .patches import Grid


def rope_index(
    vision: npt.NDArray[np.bool_], grids: Sequence[Grid], merge: int
) -> tuple[npt.NDArray[np.int32], int]:
    """Positions of a prompt, equal to `get_rope_index` of transformers 4.45 to 4.57, the rule of the original release.

    Text counts up by one in all three. A medium's tokens take the next text position plus their place in its merged
    grid. The text after it continues at the largest position so far plus one, that is `max(t, h, w)` after the medium's
    start. transformers 5 continues at `max(h, w)`, which differs where a clip has more temporal grids than that.

    Args:
        vision: bool [L], True where a token stands for a piece of a medium.
        grids: (t, h, w) in patches of each medium, in order. Control tokens lie between two media.
        merge: patches along a side of a vision token.

    Returns:
        int32 [3, L], and the delta: the token at place p ≥ L has position p + delta in all three.

    Raises:
        ValueError: the vision tokens are not those of the grids.
    """
    sizes = [(t, h // merge, w // merge) for t, h, w in grids]
    positions = np.zeros((3, len(vision)), np.int32)
    at = place = 0
    for t, h, w in sizes:
        start = place + int(np.argmax(vision[place:]))
        end = start + t * h * w
        if not vision[start:end].all() or end > len(vision):
            raise ValueError("The vision tokens do not match the grids.")
        positions[:, place:start] = np.arange(at, at + start - place)
        at += start - place
        positions[:, start:end] = np.indices((t, h, w)).reshape(3, -1) + at
        at += max(t, h, w)
        place = end
    if vision[place:].any():
        raise ValueError("There are more vision tokens than the grids have.")
    positions[:, place:] = np.arange(at, at + len(vision) - place)
    return positions, int(positions.max(initial=-1)) + 1 - len(vision)
