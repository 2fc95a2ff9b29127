"""Keeps answers in the form that they must have. The next masks are computed while the device computes scores."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sailq.shared.errors import BadRequest

from .masks import Bits, Ends, Mask

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class Guide:
    """The state of a grammar in one answer. Used by one thread at a time.

    Attributes:
        matcher: this guide's own.
        over: whether the answer is complete: nothing can follow, or an end token was accepted.
    """

    def __init__(self, matcher: LLMatcher, mask: Mask, ends: Ends) -> None:
        """`mask`: of the first token."""
        self.matcher, self.over = matcher, False
        self._mask: Mask | None = mask
        self._ends = ends

    @property
    def mask(self) -> Mask:
        """The tokens that may come next. Raises BadRequest if the grammar exceeded its limits, or has a dead end."""
        if self._mask is None:
            raise BadRequest("The grammar of structured_outputs became too complex in the middle of the answer.")
        if self._mask.empty:
            raise BadRequest("The grammar of structured_outputs allows no token after this part of the answer.")
        return self._mask

    @property
    def forced(self) -> int | None:
        """The only token that may come next; None if there is a choice, or an error."""
        return None if self._mask is None else self._mask.forced

    def accept(self, token: int) -> None:
        """Add a token that `mask` allows. Raises BadRequest if the grammar exceeds its limits."""
        self._mask = None
        if token in self._ends.tokens:
            self.over = True
        elif self.matcher.consume_token(token):
            self.over = self.matcher.is_stopped()
        if self.matcher.is_error():
            _ = self.mask  # raises

    def take(self, bits: Bits) -> None:
        """Keep what llguidance has computed as the tokens that may come next."""
        self._mask = None if self.matcher.is_error() else Mask(bits, self._ends)


class MaskWriter:
    """Computes the masks of guided answers on a thread of its own, without the GIL. The first of them starts it."""

    def __init__(self, slots: int, words: int) -> None:
        """`words`: of a mask."""
        self._shape = slots, words
        self._work: SimpleQueue[Sequence[Guide] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._started = self._pending = False

    def begin(self, guides: Sequence[Guide]) -> None:
        """Start to compute the next masks of guides, at most one for each slot. They are valid until the next call."""
        with suppress(RuntimeError):  # of a step that failed, and with it its answers
            self.finish()
        if not self._started:
            # The thread has no reference to this object, and ends with it.
            arguments = self._work, self._done, self._shape
            threading.Thread(target=_run, args=arguments, name="sailq-masks", daemon=True).start()
            weakref.finalize(self, self._work.put, None)
            self._started = True
        self._pending = True
        self._work.put(guides)

    def finish(self) -> None:
        """Wait for the masks that were begun."""
        if self._pending:
            self._pending = False
            if (error := self._done.get()) is not None:
                raise RuntimeError("the masks of guided answers could not be computed") from error


def _run(
    work: SimpleQueue[Sequence[Guide] | None], done: SimpleQueue[BaseException | None], shape: tuple[int, int]
) -> None:
    from llguidance import LLExecutor

    executor, bits = LLExecutor(1), np.empty(shape, np.uint32)
    while (guides := work.get()) is not None:
        try:
            _compute(executor, guides, bits)
            done.put(None)
        except BaseException as error:  # a panic in Rust is no Exception; the device's thread must not wait for ever
            done.put(error)


def _compute(executor: LLExecutor, guides: Sequence[Guide], bits: npt.NDArray[np.uint32]) -> None:
    """`bits`: uint32 [slots, words], for the masks."""
    rows = [(guide.matcher, row) for row, guide in enumerate(guides)]
    executor.unsafe_compute_mask_ptr(rows, bits.ctypes.data, bits.strides[0], len(bits))
    for guide, row in zip(guides, bits, strict=False):
        guide.take(row)
