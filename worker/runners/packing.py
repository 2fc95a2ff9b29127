"""Which vision grids share a launch of the ViT, and how many prompts share a prefill.

A compiled net has fixed sizes. A launch runs at the smallest size that holds what is in it, so a launch that is larger
than needed wastes time on padding, and many small launches read the weights many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

VISION_CALL = 32
"""As many temporal grids as a clip of 64 frames has."""


def smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest of increasing sizes that holds `needed`."""
    return next(size for size in sizes if size >= needed)


def vision_calls(grids: Sequence[int]) -> Iterator[slice]:
    """Divide media, in order, into calls of a runner. The watchdog ends the process if a call takes too long, so media
    share a call only while they have at most `VISION_CALL` temporal grids. `grids`: those of each medium."""
    start = 0
    for end in range(1, len(grids) + 1):
        if end == len(grids) or sum(grids[start : end + 1]) > VISION_CALL:
            yield slice(start, end)
            start = end


def vision_launches(grids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Divide temporal grids into launches of the ViT.

    Args:
        grids: the number of patches of each grid, none above the largest size.
        sizes: patches that the ViT can take, increasing.

    Returns:
        The indices of each launch's grids.
    """
    left, launches = sorted(range(len(grids)), key=lambda index: -grids[index]), []
    while left:
        count = _best_count([grids[index] for index in left], sizes, _vision_time)
        launches.append(left[:count])
        left = left[count:]
    return launches


def prompts_together(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """How many of the first prompts to prefill in one launch.

    Args:
        lengths: the tokens of each prompt, in the order in which they wait.
        sizes: tokens that a launch can take, increasing.

    Returns:
        At least 1, also if the first prompt is larger than every size.
    """
    return _best_count(lengths, sizes, _prefill_time)


def _best_count(needed: Sequence[int], sizes: Sequence[int], time: Callable[[int], float]) -> int:
    """How many of the first items to put into one launch, so that it takes the least time for each token or patch."""
    best, least, used = 1, float("inf"), 0
    for count, one in enumerate(needed, 1):
        used += one
        if used > sizes[-1]:
            break
        each = time(smallest(sizes, used)) / used
        if each < least:
            best, least = count, each
    return best


def _vision_time(size: int) -> float:
    """The time of a launch, as a multiple of a patch's. It fits the compiler's estimates of a 7B model's ViT in half
    precision up to 640 patches: 60 ms at 160, 91 ms at 320, 159 ms at 640. At 1024 it gives 280 ms instead of 237."""
    return 200 + size + size**2 / 2048


def _prefill_time(size: int) -> float:
    """The time of a launch, as a multiple of a token's. It fits the compiler's estimates of a 7B model's layer: 3.5 ms
    at 80 tokens, 6.5 ms at 160 and 19.9 ms at 512."""
    return 16 + size
