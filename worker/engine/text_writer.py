"""Turns the tokens of answers into text, and gives it to their requests, while the device computes the next step.

The device's thread puts the tokens of each step here, and hands them over when the device is busy with the next one.
The two threads share the GIL: text that is written between two launches makes the device wait. If a stop text ends an
answer, the device may have computed some more tokens by then, which are dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from logging import getLogger
from queue import SimpleQueue
from typing import NamedTuple

from sailq.shared.errors import SailqError
from sailq.shared.jobs import FinishReason

from .generation import Generation
from .request import Outcome, Request

_log = getLogger("sailq.worker")
_STEPS = 3
"""Steps that may be unwritten, or half written. The device's thread waits if there are more."""


class Piece(NamedTuple):
    """A token of a request, or its end.

    Attributes:
        token: None: there is no further token.
        at: the time (`time.monotonic`) of the token.
        latency: seconds since the token before.
        reason, error: why the request ends with this piece; None if it goes on.
    """

    request: Request
    generation: Generation
    token: int | None = None
    at: float = 0.0
    latency: float | None = None
    reason: FinishReason | None = None
    error: SailqError | None = None


class TextWriter:
    """Writes pieces in the order in which they were put: on its own thread between `start` and `close`, after
    `hand_over`; else at once.

    Args:
        on_token: called for each token of an answer, with the seconds since the one before.
    """

    def __init__(self, on_token: Callable[[float | None], None]) -> None:
        self._on_token = on_token
        # Queue would be simpler. Its lock, held by the thread that wakes up, costs the device's thread 0.2 ms a step.
        self._steps: SimpleQueue[Sequence[Piece] | None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(_STEPS):
            self._room.put(None)
        self._thread: threading.Thread | None = None
        self._pieces: list[Piece] = []
        """Put, and not handed over."""

    @property
    def alive(self) -> bool:
        """False only if the thread failed."""
        thread = self._thread  # `close` may set it to None meanwhile
        return thread is None or thread.is_alive()

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="sailq-text", daemon=True)
        thread.start()
        self._thread = thread  # set after the start: `alive` reports a thread that has not started as dead

    def close(self) -> None:
        """Write what was put, and end the thread."""
        if self._thread is not None:
            self.hand_over()
            self._steps.put(None)
            self._thread.join()
            self._thread = None

    def put(self, pieces: Sequence[Piece]) -> None:
        if self._thread is not None:
            self._pieces.extend(pieces)
        else:
            self._write_all(pieces)

    def hand_over(self) -> None:
        """Let the thread write what was put."""
        if self._pieces:
            self._room.get()
            self._steps.put(self._pieces)
            self._pieces = []

    def _run(self) -> None:
        while (pieces := self._steps.get()) is not None:
            self._write_all(pieces)
            self._room.put(None)

    def _write_all(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.request.outcome is None:
                self._write(piece)

    def _write(self, piece: Piece) -> None:
        request, stream, reason, error = piece.request, piece.generation.stream, piece.reason, piece.error
        try:
            if piece.token is not None:
                request.tokens, request.last_token_at = request.tokens + 1, piece.at
                self._on_token(piece.latency)
                thought, text = stream.push(piece.token)
                if reason is not None or stream.stopped:
                    rest = stream.finish()
                    thought, text = thought + rest[0], text + rest[1]
                    reason = "stop" if stream.stopped else reason
                if thought and request.on_thought is not None:
                    request.on_thought(thought)
                if text and request.on_text is not None:
                    request.on_text(text)
        except Exception as failure:
            reason, error = "error", as_failure(failure, "streaming")
        if reason is not None:
            request.finish(
                Outcome.of(piece.generation, request.tokens, request.last_token_at, reason, error)
            )


def as_failure(error: Exception, phase: str) -> SailqError:
    """The error for the caller. Logs an error that is not a SailqError with its traceback."""
    if isinstance(error, SailqError):
        return error
    _log.error("%s failed", phase, exc_info=error)
    return SailqError(f"The worker failed in {phase}: {error}.")
