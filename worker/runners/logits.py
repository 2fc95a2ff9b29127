"""The scores of the next token. They stay where they were computed until they are read.

A row has 4 bytes for each token of the vocabulary, 0.6 MB for 152,000 tokens. A greedy answer reads none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .chip import Chip

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

UNUSABLE = -1
"""Token id in place of the argmax if a score is not finite."""


Choose = Callable[[], tuple[Int, Float | None]]
"""Makes a device compute each row's argmax, int32 [slots], and perhaps the sum of its scores, float32 [slots]."""


class Logits(Protocol):
    """One row for each sequence of a call. Valid until the runner's next call."""

    def argmax(self) -> Int:
        """int32 [rows]: the token with the highest score, the first of equals, or UNUSABLE.

        Scores in the host's memory are all checked to be finite. If the device chooses, their sum is checked, or
        else the score of the chosen token. If the device gives no scores (`greedy_only`), the hidden state is checked.
        """

    def row(self, index: int) -> Float:
        """float32 [vocabulary]. Raises ValueError if the device gives no scores (`greedy_only`)."""


class HostLogits:
    """Scores in the host's memory, float32 [rows, vocabulary]."""

    def __init__(self, values: Float) -> None:
        self._values = values

    def argmax(self) -> Int:
        usable = np.isfinite(self._values).all(axis=1)
        return np.where(usable, self._values.argmax(axis=1), UNUSABLE).astype(np.int32)

    def row(self, index: int) -> Float:
        row: Float = self._values[index]
        return row


class DeviceLogits:
    """Scores in a device's memory, of which `rows` count."""

    def __init__(
        self, chip: Chip, scores: Any, rows: Sequence[int], vocabulary: int,
        choose: Choose | None,
    ) -> None:
        self._chip, self._scores, self._rows = chip, scores, list(rows)
        self._vocabulary, self._choose = vocabulary, choose

    def argmax(self) -> Int:
        if self._choose is None:
            return HostLogits(np.stack([self.row(index) for index in range(len(self._rows))])).argmax()
        tokens, sums = self._choose()
        chosen = tokens[self._rows]
        usable = (chosen >= 0) & (chosen < self._vocabulary)
        if sums is not None:
            usable &= np.isfinite(sums[self._rows])
        else:
            for index in np.flatnonzero(usable).tolist():
                usable[index] = np.isfinite(self._part(index, int(chosen[index]), 1)).all()
        return np.where(usable, chosen, UNUSABLE).astype(np.int32)

    def row(self, index: int) -> Float:
        return self._part(index, 0, self._vocabulary)

    def _part(self, index: int, start: int, length: int) -> Float:
        """Some of a row's scores."""
        start += self._rows[index] * self._vocabulary
        part: Float = self._chip.read(self._chip.view(self._scores, [1, length], start))[0]
        return part


class ChosenTokens:
    """Tokens of a net that gives no scores, int32 [rows]."""

    def __init__(self, tokens: Int) -> None:
        self._tokens = tokens

    def argmax(self) -> Int:
        return self._tokens

    def row(self, index: int) -> Float:
        raise ValueError("this model file gives tokens instead of logits")
