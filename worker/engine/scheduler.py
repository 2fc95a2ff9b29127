"""Continuous batching: `step()` = admit -> prefill -> decode, on the device's thread. Text has a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from logging import getLogger

from sailq.shared.errors import Cancelled, DeviceFailed, SailqError
from sailq.shared.jobs import FinishReason, Priority

from .engine import Engine, Start
from .generation import Generation
from .request import Outcome, Request
from .text_writer import Piece, TextWriter, as_failure

_log = getLogger("sailq.worker")


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
        counts: totals. Each is written by one thread only.
    """

    def __init__(self, engine: Engine, on_inter_token_latency: Callable[[float], None] = lambda seconds: None) -> None:
        """`on_inter_token_latency` takes the seconds between two tokens of an answer, on the text writer's thread."""
        self.counts = Counts()
        self._engine = engine
        # No method of its own: in a cycle of references, a dropped scheduler would keep its device.
        self._writer = TextWriter(partial(_count, self.counts, on_inter_token_latency))
        self._slots: list[Request | None] = [None] * engine.slots
        self._waiting: dict[Priority, deque[Request]] = {"high": deque(), "normal": deque()}
        self._changed = threading.Condition()
        self._patience = max(0, (engine.slots - 16) // 4)
        """`_unused` may not exceed it. With 16 slots or fewer, a free slot costs more than a fuller launch saves."""
        self._unused = 0
        """Slots that stayed free, summed over the steps since the last prefill, while more waiting prompts could share
        a launch than slots were free."""
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
        """False only if the loop or the text writer failed; True before `start` and after `close`."""
        return self._thread is None or self._closing or (self._thread.is_alive() and self._writer.alive)

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
        self._writer.start()
        try:
            while self._await_work():
                self.step()
        except DeviceFailed as error:
            _log.critical("%s", error, exc_info=error)
            return
        finally:
            self._writer.close()
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
        self._free_ended()
        self._drop_interrupted()
        self._prefill_next()
        running = [request for request in self._slots if request is not None]
        if running:
            self._decode(running)
        if not any(self._slots):
            self._writer.hand_over()

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

    def _take_next(self, free: int) -> list[Request]:
        """Remove the waiting requests that are prefilled next: in order, and no more than the engine takes together.
        None of them while it is faster to wait until more slots are free."""
        with self._changed:
            first = list(islice(chain(*self._waiting.values()), len(self._slots)))
            count = self._engine.together([request.prepared for request in first]) if first else 0
            if count > free:
                self._unused += free
                if self._unused <= self._patience and first[0].priority != "high":
                    return []
                count = self._engine.together([request.prepared for request in first[:free]])
            self._unused = 0
            return [self._waiting[request.priority].popleft() for request in first[:count]]

    def _prefill_next(self) -> None:
        free = [slot for slot, request in enumerate(self._slots) if request is None]
        requests = self._take_next(len(free)) if free else []
        if not requests:
            return
        self._writer.hand_over()
        starts = [Start(request.prepared, request.options, slot) for request, slot in zip(requests, free, strict=False)]
        for request, start, result in zip(requests, starts, self._engine.start_together(starts), strict=True):
            if isinstance(result, Exception):
                self._engine.release(start.slot)
                self._end(request, "error", as_failure(result, "prefill"))
            else:
                self._started(request, result)

    def _started(self, request: Request, generation: Generation) -> None:
        request.generation = generation
        self._slots[generation.slot] = request
        prepared = request.prepared
        self.counts.prompt_tokens += len(prepared.tokens)
        self.counts.vision_tokens += len(prepared.places)
        self.counts.media += len(prepared.media)
        self.counts.media_reused += generation.reused
        self._writer.put([self._piece(request, generation)])

    def _decode(self, running: list[Request]) -> None:
        generations = [request.generation for request in running if request.generation is not None]
        try:
            self._engine.step(generations, self._writer.hand_over)
        except DeviceFailed:
            raise
        except Exception as error:
            failure = as_failure(error, "decode")
            for request in running:
                self._end(request, "error", failure)
            return
        self._writer.put(list(map(self._piece, running, generations)))

    def _piece(self, request: Request, generation: Generation) -> Piece:
        """The newest token of a request, whose slot is free again if it is the last."""
        if generation.error is not None:
            self._free(generation.slot)
            return Piece(request, generation, reason="error", error=as_failure(generation.error, "sampling"))
        if generation.finish_reason is not None:
            self._free(generation.slot)
        return Piece(request, generation, generation.tokens[-1], generation.last_token_at,
                     generation.inter_token_latency, generation.finish_reason)

    def _free(self, slot: int) -> None:
        self._slots[slot] = None
        self._engine.release(slot)

    def _free_ended(self) -> None:
        """Free the slots of the requests that the text writer has ended."""
        for slot, request in enumerate(self._slots):
            if request is not None and request.outcome is not None:
                self._free(slot)

    def _end(self, request: Request, reason: FinishReason, error: SailqError | None = None) -> None:
        """Free the request's slot, if it has one, and tell its waiter."""
        generation = request.generation
        if generation is None:
            request.finish(Outcome.unstarted(reason, error))
            return
        self._free(generation.slot)
        self._writer.put([Piece(request, generation, reason=reason, error=error)])


def _count(counts: Counts, observe: Callable[[float], None], inter_token_latency: float | None) -> None:
    """Count a token of an answer. Called by the text writer."""
    counts.generation_tokens += 1
    if inter_token_latency is not None:
        observe(inter_token_latency)
