"""Which tokens may come next in an answer: a bit for each token, as llguidance writes them."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint32]
"""[words]: the lowest bit of the first word stands for token 0."""
_WORD = 32


class Ends:
    """The tokens that end an answer.

    Attributes:
        mark: the one end token that llguidance is told of. It comes after all tokens of the model.
        tokens: the model's own, all of which are allowed where `mark` is.
        words: of a mask.
    """

    def __init__(self, tokens: Set[int], vocabulary: int) -> None:
        self.mark, self.tokens = vocabulary, frozenset(token for token in tokens if token < vocabulary)
        self.words = vocabulary // _WORD + 1
        self.bits = np.zeros(self.words, np.uint32)
        for token in self.tokens:
            self.bits[token // _WORD] |= np.uint32(1 << token % _WORD)


class Mask:
    """The tokens that may come next.

    Attributes:
        empty: whether there are none.
        forced: the only one, or an end token if the answer can only end; None if there is a choice.
    """

    def __init__(self, bits: Bits, ends: Ends) -> None:
        """`bits`: from llguidance, with `ends.mark`. They are kept and changed."""
        word, bit = divmod(ends.mark, _WORD)
        may_end = bool(int(bits[word]) >> bit & 1)
        bits[word] &= np.uint32(~(1 << bit) & 0xFFFFFFFF)
        bits &= ~ends.bits  # a grammar may name one, but it would end the answer
        filled = np.flatnonzero(bits)
        self.empty = not len(filled) and not (may_end and ends.tokens)
        self.forced: int | None = None
        if may_end:
            if not len(filled):
                self.forced = min(ends.tokens, default=None)
            bits |= ends.bits
        elif len(filled) == 1 and (only := int(bits[filled[0]])).bit_count() == 1:
            self.forced = int(filled[0]) * _WORD + only.bit_length() - 1
        self._bits = bits

    def allows(self, token: int) -> bool:
        return bool(int(self._bits[token // _WORD]) >> token % _WORD & 1)

    @cached_property
    def tokens(self) -> npt.NDArray[np.int64]:
        """int64 [n]: the allowed tokens, in order."""
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return np.flatnonzero(bits.view(np.bool_))  # as bytes they take five times as long
