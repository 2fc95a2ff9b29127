"""The interface between the engine and a runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..engine.patches import Grid
from .logits import Float, Int, Logits
from .sensors import Readings

Bytes = npt.NDArray[np.uint8]

MASKED = -10000.0
"""Added to a masked attention score. It is exact in half precision, where -inf is not safe."""
MAX_POSITIONS = 32768
"""Most rows of the rotary table that deploy/models exports for a CPU."""


def nothing() -> None:
    """The default of `Runner.decode`'s `meanwhile`."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for a slot.

    Attributes:
        tokens: int32 [L].
        positions: int32 [3, L], M-RoPE.
        vision: float32 [V, 1 + D, H], see `Runner.vision`. The first embedding of each vision token replaces that of
            `tokens[places]`. The others are added to its hidden state, one after each of the first D layers.
        places: int32 [V], increasing.
    """

    slot: int
    tokens: Int
    positions: Int
    vision: Float
    places: Int


class Runner(Protocol):
    """One loaded model on one device, with a KV cache of its own for each slot.

    Every call but `readings` comes from one thread. A call checks shapes, dtypes, slots and token ids before it
    touches the device, and raises ValueError when its caller broke the contract. A call that raises does not
    change the slots that it did not name.
    """

    @property
    def device(self) -> str:
        """The name of what runs the nets, for people to read."""

    @property
    def slots(self) -> int:
        """The number of sequences that can be decoded together. Slots are numbered from 0."""

    @property
    def context(self) -> int:
        """The rows of a slot's cache. They hold the prompt and the answer but for its last token, which is never
        fed."""

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt: less than the context, and on some devices much less."""

    @property
    def greedy_only(self) -> bool:
        """Whether the device returns the argmax token and no logits."""

    @property
    def max_patches(self) -> int | None:
        """Most patches of one temporal grid (an image, or two frames of a video); None: no limit."""

    @property
    def max_side(self) -> int | None:
        """Most patches along a side of a frame; None: no limit but `max_patches`."""

    @property
    def hidden(self) -> int:
        """Width H of the language model."""

    @property
    def positions(self) -> int:
        """Rows of the nets' rotary tables: each position must be below it."""

    def vision(self, media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        """Vision tokens of some media. Values that are not finite in one medium do not reach another.

        Args:
            media: of each, its patches, uint8 [t·h·w, P], as `Family.patches` returns them, and its (t, h, w).

        Returns:
            float32 [V, 1 + D, H] of each medium; D is the family's `deepstack`.
        """

    def together(self, lengths: Sequence[int]) -> int:
        """How many of the first waiting prompts `prefill` should get in one call; at least 1. `lengths`: the tokens of
        each, in the order in which they wait."""

    def prefill(self, prompts: Sequence[Prompt]) -> Logits:
        """Put prompts into empty or abandoned slots, each into its own. Values that are not finite in one prompt do not
        reach another.

        Returns:
            A row for each prompt: the logits after its last token.
        """

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> Logits:
        """Append one token to each of these slots, in one step of the device.

        Args:
            slots: distinct, each filled by `prefill` and with room for one more token.
            tokens: int32 [len(slots)].
            positions: int32 [3, len(slots)].
            meanwhile: called once, just before the device begins the longest part of the step.

        Returns:
            A row for each of `slots`.
        """

    def release(self, slot: int) -> None:
        """Free a slot, so that its memory can be used for another sequence."""

    def clear(self, slot: int) -> None:
        """Free the slot and zero its memory.

        Needed after values that are not finite: the mask does not hide them from the slot's next sequence.
        """

    def readings(self) -> Readings | None:
        """The readings of the device's sensors, or None if it has none. May be called from any thread."""
