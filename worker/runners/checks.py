"""Argument checks of every runner, made before it touches its device. They raise ValueError."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.model import ModelSpec
from ..engine.patches import Grid
from .base import Bytes, Prompt
from .logits import Float, Int


def require(condition: bool | np.bool_, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def check_tokens(spec: ModelSpec, tokens: Int, positions: Int, table: int) -> None:
    """Check `tokens`, int32 [n], each in the vocabulary, and `positions`, int32 [3, n], each below `table`, the rotary
    table's rows."""
    require(tokens.dtype == np.int32 and tokens.ndim == 1, "tokens must be int32 [n]")
    require(positions.dtype == np.int32 and positions.ndim == 2, "positions must be int32 [3, n]")
    require(positions.shape == (3, len(tokens)), "each token needs three positions")
    require(tokens.min() >= 0 and tokens.max() < spec.vocab_size, "no such token")
    require(positions.min() >= 0 and positions.max() < table, "no such position")


def check_prompts(spec: ModelSpec, slots: int, context: int, table: int, prompts: Sequence[Prompt]) -> None:
    """Check the arguments of `Runner.prefill`, for a runner with `slots` slots of `context` tokens, and rotary tables
    of `table` rows."""
    require(len({prompt.slot for prompt in prompts}) == len(prompts) > 0, "slots must be distinct, and at least one")
    for prompt in prompts:
        length = len(prompt.tokens)
        require(0 <= prompt.slot < slots, f"there is no slot {prompt.slot}")
        require(0 < length < context, f"a prompt of {length} tokens does not fit")
        check_tokens(spec, prompt.tokens, prompt.positions, table)
        check_vision(spec, length, prompt.vision, prompt.places)


def check_step(
    spec: ModelSpec, used: Int, context: int, table: int, slots: Sequence[int], tokens: Int, positions: Int
) -> tuple[Int, Int]:
    """Check the arguments of `Runner.decode`. `used`: the tokens that each slot holds, of `context` at most; `table`:
    rows of the rotary tables.

    Returns:
        int32 [n] slots, and int32 [n] tokens that each of them holds.
    """
    require(len(set(slots)) == len(slots) > 0, "slots must be distinct, and at least one")
    require(min(slots) >= 0 and max(slots) < len(used), "there is no such slot")
    rows = np.array(slots, np.int32)
    lengths = used[rows]
    require(lengths.min() > 0 and lengths.max() < context, "a slot is empty or full")
    check_tokens(spec, tokens, positions, table)
    require(len(tokens) == len(rows), "each slot needs one token")
    return rows, lengths


def check_vision(spec: ModelSpec, length: int, vision: Float, places: Int) -> None:
    """Check `vision`, float32 [V, 1 + D, H]: one for each of `places` in a prompt of `length` tokens."""
    require(vision.dtype == np.float32, "vision embeddings must be float32")
    wanted = len(places), 1 + spec.family.deepstack, spec.hidden_size
    require(vision.shape == wanted, "the vision embeddings do not match their places")
    require(np.isin(places, np.arange(length)).all(), "a vision token's place is outside the prompt")


def check_media(spec: ModelSpec, media: Sequence[tuple[Bytes, Grid]], most: int, side: int | None) -> None:
    """Check the arguments of `Runner.vision`. `most`: patches in one temporal grid; `side`: patches along a side of
    it."""
    for pixels, (t, h, w) in media:
        size = spec.family.patch_dim
        require(pixels.dtype == np.uint8 and pixels.shape == (t * h * w, size), "pixels do not fit the grid")
        require(0 < h * w <= most, f"{h * w} patches; at most {most} fit")
        require(side is None or max(h, w) <= side, f"{max(h, w)} patches along a side; at most {side} fit")
