"""An answer that is being generated in a slot."""

from __future__ import annotations

from dataclasses import dataclass, field

from sailq.shared.jobs import FinishReason, Usage

from .guides import Guide
from .preprocessor import PreparedPrompt
from .sampling import Sampler
from .text import AnswerStream


@dataclass
class Generation:
    """One answer that is being generated in a slot. Times are `time.monotonic` seconds.

    Attributes:
        form: keeps the answer in its form; None for a free answer.
        thinking: whether the newest token is of a thought that the prompt has opened. Its form is free.
        reused: number of media whose vision tokens were in the vision cache.
        inter_token_latency: seconds between the last two tokens; None until there are two.
        tokens: the tokens chosen so far, the end token included.
        finish_reason: None until the last token. A stop text ends an answer, too; only the text writer sees it.
        error: why no further token could be chosen; the generation is then over.
    """

    prepared: PreparedPrompt
    slot: int
    sampler: Sampler
    stream: AnswerStream
    form: Guide | None
    vision_encode: float
    reused: int = 0
    prefill: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    inter_token_latency: float | None = None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    thinking: bool = False

    @property
    def guide(self) -> Guide | None:
        """What the next token must follow."""
        return None if self.thinking else self.form

    def usage(self, tokens: int) -> Usage:
        """The usage of an answer of so many tokens."""
        return Usage(
            prompt_tokens=len(self.prepared.tokens), vision_tokens=len(self.prepared.places),
            completion_tokens=tokens, reasoning_tokens=self.stream.reasoning_tokens,
        )
