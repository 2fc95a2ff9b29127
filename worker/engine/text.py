"""Decodes tokens into text as they come. Holds back incomplete characters and what may begin a stop text."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

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


class ThoughtMarks(NamedTuple):
    """The tokens around the thought of a thinking model.

    Attributes:
        begin, end: `<think>` and `</think>`.
        opened: whether the prompt ends with `begin`; else the model may write it as its first token.
    """

    begin: int
    end: int
    opened: bool


class AnswerStream:
    """The text of an answer, and the thought that a thinking model puts before it, as their tokens come.

    The newlines around a thought, and those before the text after it, are dropped, as the models' chat templates do. A
    stop text ends the answer in the thought, too, as in vLLM.

    Attributes:
        reasoning_tokens: number of tokens of the thought, without its marks.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], end_tokens: Set[int], marks: ThoughtMarks | None = None
    ) -> None:
        """`marks`: None for a model that does not think."""
        self._text, self._thought = TextStream(tokenizer, stop, end_tokens), TextStream(tokenizer, stop, end_tokens)
        self._marks, self._first = marks, True
        self._thinking = self._leading = marks is not None and marks.opened
        """Whether the thought goes on, and whether newlines that come now are dropped."""
        self._newlines = ""  # those that end the thought, unless more of it follows
        self._thought_given: list[str] = []
        self._text_given: list[str] = []
        self.reasoning_tokens = 0

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._text_given)

    @property
    def reasoning(self) -> str:
        """All of the thought returned so far."""
        return "".join(self._thought_given)

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._text.stopped or self._thought.stopped

    def push(self, token: int) -> tuple[str, str]:
        """Add one token. Returns what is now final of the thought and of the text."""
        first, self._first = self._first, False
        if self._marks is None or not (self._thinking or first and token == self._marks.begin):
            return self._given(self._text.push(token))
        if token == self._marks.begin and first:
            self._thinking = self._leading = True
            return "", ""
        if token == self._marks.end:
            given = self.finish()
            self._thinking, self._leading = False, True
            return given
        self.reasoning_tokens += 1
        return self._given(self._thought.push(token))

    def finish(self) -> tuple[str, str]:
        """End the answer. Returns what was held back of the thought and of the text."""
        return self._given((self._thought if self._thinking else self._text).finish())

    def _given(self, fresh: str) -> tuple[str, str]:
        if self._leading:
            fresh = fresh.lstrip("\n")
            self._leading = not fresh
        if not self._thinking:
            self._text_given.append(fresh)
            return "", fresh
        fresh = self._newlines + fresh
        kept = fresh.rstrip("\n")
        self._newlines = fresh[len(kept) :]
        self._thought_given.append(kept)
        return kept, ""
