"""Continuous batching: `step()` = admit -> prefill -> decode -> emit, on the device's thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from logging import getLogger

from sailq.shared.errors import Cancelled, DeadlineExceeded, DeviceFailed, SailqError
from sailq.shared.jobs import FinishReason, GenerationOptions, Priority, Usage

from .engine import Engine, Generation, Start
from .preprocessor import PreparedPrompt

_log = getLogger("sailq.worker")


@dataclass(frozen=True)
class Outcome:
    """How a request ended. Durations are in seconds; `first_token_at` is a `time.monotonic`. None: no such step took
    place.

    Attributes:
        text: all text that `on_text` got; for a cancelled or late request, the text until then.
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

    @classmethod
    def unstarted(cls, reason: FinishReason, error: SailqError | None = None) -> Outcome:
        """The outcome of a request that never got a slot."""
        return cls("", reason, error)

    @classmethod
    def of(cls, generation: Generation, reason: FinishReason, error: SailqError | None = None) -> Outcome:
        tokens, decode = len(generation.tokens), generation.last_token_at - generation.first_token_at
        return cls(
            generation.stream.text, reason, error, generation.usage,
            vision_encode=generation.vision_encode, prefill=generation.prefill, decode=decode,
            first_token_at=generation.first_token_at,
            inter_token_latency=decode / (tokens - 1) if tokens > 1 else None,
        )


class Request:
    """A request for one answer. `on_text` is called on the scheduler's thread and must return at once.

    Args:
        prepared: from `Engine.prepare`.
        deadline: the `time.monotonic` at which the request ends as `deadline`, or None.
        on_text: gets each piece of text once it is final.
    """

    def __init__(
        self,
        prepared: PreparedPrompt,
        options: GenerationOptions,
        deadline: float | None = None,
        priority: Priority = "normal",
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.prepared, self.options = prepared, options
        self.deadline, self.priority, self.on_text = deadline, priority, on_text
        self.generation: Generation | None = None
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


@dataclass
class Counts:
    """Totals of a scheduler since it was made.

    Attributes:
        prompt_tokens, vision_tokens: tokens of the prefilled prompts; vision tokens count as prompt tokens too.
        generation_tokens: generated tokens, end tokens included.
        media, media_reused: media in these prompts, and those of them that were in the vision cache.
    """

    prompt_tokens: int = 0
    vision_tokens: int = 0
    generation_tokens: int = 0
    media: int = 0
    media_reused: int = 0


class Scheduler:
    """Keeps the engine's slots full. `submit` may be called from any thread; one thread runs the steps.

    Requests are served in order. `high` priority goes before `normal`, but does not preempt a running request.

    Attributes:
        counts: totals, written only by the scheduler's thread.
    """

    def __init__(self, engine: Engine, on_inter_token_latency: Callable[[float], None] = lambda seconds: None) -> None:
        """`on_inter_token_latency` takes the seconds between two tokens of an answer, on the scheduler's thread."""
        self.counts = Counts()
        self._engine, self._on_inter_token_latency = engine, on_inter_token_latency
        self._slots: list[Request | None] = [None] * engine.slots
        self._waiting: dict[Priority, deque[Request]] = {"high": deque(), "normal": deque()}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(request is not None for request in self._slots)

    @property
    def waiting(self) -> int:
        """Requests that are ready and have no slot."""
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def alive(self) -> bool:
        """False only if the loop failed; True before `start` and after `close`."""
        return self._thread is None or self._closing or self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request; after `close` it is cancelled at once."""
        with self._changed:
            if not self._closing:
                self._waiting[request.priority].append(request)
                self._changed.notify()
                return
        request.finish(Outcome.unstarted("cancelled", Cancelled("The worker is shutting down.")))

    def start(self) -> None:
        """Run the loop on a thread of its own."""
        thread = threading.Thread(target=self.run, name="sailq-scheduler", daemon=True)
        thread.start()
        self._thread = thread  # set after the start: `alive` reports a thread that has not started as dead

    def run(self) -> None:
        """Step until `close`, then cancel the remaining requests.

        If the device fails, the loop ends at once. Its requests stay unfinished: another process runs their jobs.
        """
        try:
            while self._await_work():
                self.step()
        except DeviceFailed as error:
            _log.critical("%s", error, exc_info=error)
            return
        for request in [*self._take_waiting(lambda request: True), *filter(None, self._slots)]:
            self._end(request, "cancelled", Cancelled("The worker is shutting down."))

    def close(self) -> None:
        """End the loop after its current step and wait for it. Cancels unfinished requests."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> None:
        """End interrupted requests, prefill the next ones together, and decode one token for each running request."""
        self._drop_interrupted()
        self._prefill_next()
        running = [request for request in self._slots if request is not None]
        if running:
            self._decode(running)

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or any(self._slots) or any(self._waiting.values()))
            return not self._closing

    def _take_waiting(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Remove all waiting requests that are `wanted`."""
        with self._changed:
            taken = [request for queue in self._waiting.values() for request in queue if wanted(request)]
            for request in taken:
                self._waiting[request.priority].remove(request)
            return taken

    def _drop_interrupted(self) -> None:
        now = time.monotonic()
        late = self._take_waiting(lambda request: request.interrupted(now) is not None)
        for request in [*late, *filter(None, self._slots)]:
            if (interruption := request.interrupted(now)) is not None:
                self._end(request, *interruption)

    def _take_next(self, most: int) -> list[Request]:
        """Remove the waiting requests that are prefilled next: in order, and no more than the engine takes together."""
        with self._changed:
            first = list(islice(chain(*self._waiting.values()), most))
            count = self._engine.together([request.prepared for request in first]) if first else 0
            return [self._waiting[request.priority].popleft() for request in first[:count]]

    def _prefill_next(self) -> None:
        free = [slot for slot, request in enumerate(self._slots) if request is None]
        requests = self._take_next(len(free))
        starts = [Start(request.prepared, request.options, slot) for request, slot in zip(requests, free, strict=False)]
        for request, start, result in zip(requests, starts, self._engine.start_together(starts), strict=True):
            if isinstance(result, Exception):
                self._engine.release(start.slot)
                self._end(request, "error", _as_failure(result, "prefill"))
            else:
                self._started(request, result)

    def _started(self, request: Request, generation: Generation) -> None:
        request.generation = generation
        self._slots[generation.slot] = request
        usage, media = generation.usage, request.prepared.media
        self.counts.prompt_tokens += usage.prompt_tokens
        self.counts.vision_tokens += usage.vision_tokens
        self.counts.media += len(media)
        self.counts.media_reused += generation.reused
        self._emit(request)

    def _decode(self, running: list[Request]) -> None:
        generations = [request.generation for request in running if request.generation is not None]
        try:
            self._engine.step(generations)
        except DeviceFailed:
            raise
        except Exception as error:
            failure = _as_failure(error, "decode")
            for request in running:
                self._end(request, "error", failure)
            return
        for request in running:
            self._emit(request)

    def _emit(self, request: Request) -> None:
        """Give the newest text to `on_text`, and end the request if it is finished."""
        generation = request.generation
        assert generation is not None
        try:
            if generation.error is not None:
                raise generation.error
            self.counts.generation_tokens += 1
            if generation.inter_token_latency is not None:
                self._on_inter_token_latency(generation.inter_token_latency)
            if request.on_text is not None and generation.delta:
                request.on_text(generation.delta)
        except Exception as error:
            self._end(request, "error", _as_failure(error, "sampling or streaming"))
            return
        if generation.finish_reason is not None:
            self._end(request, generation.finish_reason)

    def _end(self, request: Request, reason: FinishReason, error: SailqError | None = None) -> None:
        """Free the request's slot, if it has one, and tell its waiter."""
        generation = request.generation
        if generation is None:
            request.finish(Outcome.unstarted(reason, error))
            return
        self._slots[generation.slot] = None
        self._engine.release(generation.slot)
        request.finish(Outcome.of(generation, reason, error))


def _as_failure(error: Exception, phase: str) -> SailqError:
    """The error for the caller. Logs an error that is not a SailqError with its traceback."""
    if isinstance(error, SailqError):
        return error
    _log.error("%s failed", phase, exc_info=error)
    return SailqError(f"The worker failed in {phase}: {error}.")
