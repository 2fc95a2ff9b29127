"""Decodes tokens into text as they come. Holds back incomplete characters and what may begin a stop text."""

from __future__ import annotations

from collections.abc import Sequence, Set

from .tokenizer import Tokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Incremental detokenizer of one answer, for byte-level tokenizers (Qwen2's).

    The deltas that `push` and `finish` return join to `text`, which is the tokenizer's own decoding of all
    tokens without special ones, cut where the first stop text begins.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), end_tokens: Set[int] = frozenset()) -> None:
        """`end_tokens`: tokens without a text."""
        self._tokenizer, self._end_tokens = tokenizer, end_tokens
        self._stop = tuple(stop)
        self._pending: list[int] = []  # tokens since the last one that ended on a whole character
        self._decoded = 0  # characters of the pending tokens that are in _held or were returned
        self._held = ""  # whole characters that may begin a stop text
        self._given: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        """Add one token and return the text that is now final. Sets `stopped` if a stop text ends the answer."""
        if token in self._end_tokens:
            return ""
        self._pending.append(token)
        decoded = self._decode()
        # An incomplete character decodes to one replacement character at the very end.
        certain = len(decoded) - decoded.endswith(_INCOMPLETE)
        fresh = decoded[self._decoded : certain]
        self._decoded = certain
        if certain == len(decoded):
            self._pending, self._decoded = [], 0
        return self._release(fresh, last=False)

    def finish(self) -> str:
        """End the answer and return the text that was held back."""
        rest = "" if self.stopped else self._decode()[self._decoded :]
        self._pending, self._decoded = [], 0
        return self._release(rest, last=True)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._pending)

    def _release(self, fresh: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            delta, self._held = text[: min(found)], ""
        else:
            keep = 0 if last else self._may_stop(text)
            delta, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._given.append(delta)
        return delta

    def _may_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        longest = min(len(text), max((len(stop) for stop in self._stop), default=1) - 1)
        ends = (size for size in range(longest, 0, -1) if any(s.startswith(text[-size:]) for s in self._stop))
        return next(ends, 0)
