"""A request to the scheduler, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sailq.shared.errors import Cancelled, DeadlineExceeded, SailqError
from sailq.shared.jobs import FinishReason, GenerationOptions, Priority, Usage

from .generation import Generation
from .preprocessor import PreparedPrompt


@dataclass(frozen=True)
class Outcome:
    """How a request ended. Durations are in seconds; `first_token_at` is a `time.monotonic`. None: no such step took
    place.

    Attributes:
        text, reasoning: all that `on_text` and `on_thought` got; for a cancelled or late request, what they got until
            then.
        error: set if `finish_reason` is neither `stop` nor `length`.
        vision_encode, prefill, decode: see `shared.jobs.Timings`.
        inter_token_latency: mean time between two tokens.
    """

    text: str
    finish_reason: FinishReason
    error: SailqError | None = None
    usage: Usage = Usage()
    vision_encode: float | None = None
    prefill: float | None = None
    decode: float | None = None
    first_token_at: float | None = None
    inter_token_latency: float | None = None
    reasoning: str = ""

    @classmethod
    def unstarted(cls, reason: FinishReason, error: SailqError | None = None) -> Outcome:
        """The outcome of a request that never got a slot."""
        return cls("", reason, error)

    @classmethod
    def of(
        cls, generation: Generation, tokens: int, last_token_at: float, reason: FinishReason,
        error: SailqError | None = None,
    ) -> Outcome:
        """The outcome of an answer of so many `tokens`. The device may have computed more."""
        decode = last_token_at - generation.first_token_at
        return cls(
            generation.stream.text, reason, error, generation.usage(tokens),
            vision_encode=generation.vision_encode, prefill=generation.prefill, decode=decode,
            first_token_at=generation.first_token_at,
            inter_token_latency=decode / (tokens - 1) if tokens > 1 else None,
            reasoning=generation.stream.reasoning,
        )


class Request:
    """A request for one answer. `on_text` and `on_thought` are called on the text writer's thread and must return at
    once.

    Args:
        prepared: from `Engine.prepare`.
        deadline: the `time.monotonic` at which the request ends as `deadline`, or None.
        on_text: gets each piece of text once it is final.
        on_thought: gets each piece of the thought before the text, in the same way.

    Attributes:
        tokens: number of tokens whose text was written, and `last_token_at`, the time of the last.
    """

    def __init__(
        self,
        prepared: PreparedPrompt,
        options: GenerationOptions,
        deadline: float | None = None,
        priority: Priority = "normal",
        on_text: Callable[[str], None] | None = None,
        on_thought: Callable[[str], None] | None = None,
    ) -> None:
        self.prepared, self.options = prepared, options
        self.deadline, self.priority = deadline, priority
        self.on_text, self.on_thought = on_text, on_thought
        self.generation: Generation | None = None
        self.tokens, self.last_token_at = 0, 0.0
        self.outcome: Outcome | None = None
        self._cancelled, self._done = threading.Event(), threading.Event()

    def cancel(self) -> None:
        """End the request within one step. Does nothing if it is over. May be called from any thread."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the outcome. Raises TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError("The request has not ended.")
        assert self.outcome is not None
        return self.outcome

    def interrupted(self, now: float) -> tuple[FinishReason, SailqError] | None:
        """The reason why the request must end now; None if it may go on."""
        if self._cancelled.is_set():
            return "cancelled", Cancelled("The job was cancelled.")
        if self.deadline is not None and now >= self.deadline:
            return "deadline", DeadlineExceeded("The job's deadline passed before its answer was complete.")
        return None

    def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._done.set()
