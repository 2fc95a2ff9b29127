"""Runs one job in a worker, from its claim to its result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import redis

from sailq.shared.connection import OUTAGES, ServerClock
from sailq.shared.errors import BadMedia, BadRequest, DeadlineExceeded, NotReplicated, SailqError, Unsupported, quoted
from sailq.shared.frames import Frames, decode_frames
from sailq.shared.jobs import HANDED_BACK, Attempt, Failure, Job, Message, Result, Timings, Turn
from sailq.shared.rqjob import is_own, read_job

from ..engine.engine import Engine
from ..engine.preprocessor import Media
from ..engine.request import Outcome, Request
from ..engine.scheduler import Scheduler
from .front_door import read_messages
from .job_store import Claim, JobStore, attempts, said_before
from .publisher import Kind, Publisher, Stream
from .refusals import Refusals
from .shared_lock import SharedLock

_MAX_CAUSE = 500
"""The most characters of an error that a job's history keeps."""
_OUTAGE_SECONDS = 0.25

_log = logging.getLogger("sailq.worker")


class HandedBack(Exception):
    """This worker stops before the job's answer is complete; another attempt starts over."""


class JobRunner:
    """Runs jobs through one scheduler. Each job has its own thread."""

    def __init__(
        self, connection: redis.Redis, engine: Engine, scheduler: Scheduler, publisher: Publisher, store: JobStore,
        refusals: Refusals,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._publisher = publisher
        self._store = store
        self._refusals = refusals
        self._identity, self._on_result = refusals.identity, refusals.on_result
        self._clock = ServerClock(connection)
        # Keyed by request: a worker that lost its lease may claim the same job again.
        self._running: dict[Request, Claim] = {}
        self._lock = threading.Lock()
        self._leaving = False
        self._device = SharedLock()

    def run(self, claim: Claim) -> None:
        """Runs one attempt at a job. A failure caused by the job becomes its result.

        A job's last attempt runs alone on the device. If a job crashes its workers, the jobs beside it must not use up
        their last attempts, too.
        """
        with self._device.alone() if claim.last else self._device.shared():
            if claim.last and not self._store.begin(claim):
                return
            claimed_at = self._clock.now()
            try:
                if not claim.fields:
                    raise BadRequest("This job's record is too large, or RQ did not write it.")
                job, claim = self._read(claim)
            except SailqError as error:
                self._refusals.refuse(claim.job, claim.execution, error, queue=claim.queue, fields=claim.fields)
                return
            try:
                self._run_claimed(job, claim, claimed_at)
            except HandedBack:
                if self._store.release(claim, HANDED_BACK, counts=False):
                    _log.info("job %s goes back to its queue", claim.job)
            except redis.RedisError as error:
                with suppress(redis.RedisError):
                    self._store.release(claim, f"error: {type(error).__name__}")
                raise

    def _read(self, claim: Claim) -> tuple[Job, Claim]:
        """The job, and its claim, to which the clips in the job's own messages are added."""
        if is_own(claim.fields):
            return read_job(claim.job, claim.queue, claim.fields), claim
        clips: dict[str, bytes] = {}

        def read(messages: Any) -> tuple[Message, ...]:
            prepared = read_messages(messages, self._engine.card)
            clips.update(prepared.blobs)
            return prepared.messages

        return read_job(claim.job, claim.queue, claim.fields, read), replace(claim, clips={**claim.clips, **clips})

    def cancel(self, job: str, execution: str | None = None) -> None:
        """Cancels a job, or one attempt at it, if it runs here."""
        with self._lock:
            requests = [request for request, claim in self._running.items()
                        if claim.job == job and execution in {None, claim.execution}]
        for request in requests:
            request.cancel()

    def hand_back(self) -> None:
        """Ends every attempt that runs here now or later with HandedBack."""
        with self._lock:
            self._leaving = True
            requests = list(self._running)
        for request in requests:
            request.cancel()

    def _run_claimed(self, job: Job, claim: Claim, claimed_at: float) -> None:
        timings = Timings(queue_wait=max(0.0, claimed_at - job.submitted_at))
        try:
            if claim.fields.get(b"cancel"):
                outcome = Outcome.unstarted("cancelled")
            else:
                outcome, timings = self._generate(job, claim, timings)
        except DeadlineExceeded as error:
            outcome = Outcome.unstarted("deadline", error)
        except SailqError as error:
            _log.warning("refused %s: %s: %s", job.id, error.code, quoted(str(error)))
            outcome = Outcome.unstarted("error", error)
        except (redis.RedisError, HandedBack):
            raise  # not the job's fault: another attempt will run it
        except Exception as error:
            _log.exception("job %s", job.id)
            outcome = Outcome.unstarted("error", SailqError(f"The worker failed on this job: {type(error).__name__}."))
        result = self._result(job, claim, outcome, timings)
        answered = result.finish_reason in {"stop", "length"}
        turn = Turn(job=job.id, turn=job.turn, messages=job.messages, text=result.text) if answered else None
        for trial in count():
            try:
                if job.stream:
                    self._publisher.flush()
                if not self._store.finish(job.id, claim.execution, result, turn, replicated=True):
                    _log.warning("job %s: another attempt has begun; this one's result is dropped", job.id)
                else:
                    self._on_result(result)
                return
            # Keep the result and try again. It is dropped only if another attempt begins meanwhile.
            except (*OUTAGES, NotReplicated) as error:
                if not trial:
                    _log.warning("job %s: its result is kept until the server accepts it: %s", job.id, error)
            if self._leaving:
                raise HandedBack
            time.sleep(_OUTAGE_SECONDS)

    def _generate(self, job: Job, claim: Claim, timings: Timings) -> tuple[Outcome, Timings]:
        if job.model not in self._identity.models:
            raise Unsupported(f"This worker serves {' and '.join(self._identity.models)}, not {job.model!r}.")
        deadline = _deadline(job, claim, self._clock.now())
        start = time.monotonic()
        messages = said_before(claim) + list(job.messages)
        media = self._engine.media(messages)
        frames = self._frames(media, claim)
        fetched = time.monotonic()
        prepared = self._engine.prepare(messages, frames, job.options, media)
        ready = time.monotonic()

        def publish(kind: Kind) -> Callable[[str], None] | None:
            return partial(self._publisher.put, Stream(job.id, claim.attempt, kind)) if job.stream else None

        request = Request(
            prepared, job.options, deadline, job.priority,
            on_text=publish("text"), on_thought=publish("reasoning"),
        )
        with self._lock:
            if self._leaving:
                raise HandedBack
            self._running[request] = claim
        try:
            self._scheduler.submit(request)
            outcome = request.wait()
        finally:
            with self._lock:
                del self._running[request]
        if self._leaving and outcome.finish_reason == "cancelled":
            raise HandedBack  # if a producer also cancelled it, the next attempt sees that
        first = outcome.first_token_at
        return outcome, timings.model_copy(update={
            "fetch": fetched - start,
            "preprocess": ready - fetched,
            "vision_encode": outcome.vision_encode,
            "prefill": outcome.prefill,
            "decode": outcome.decode,
            "inter_token_latency": outcome.inter_token_latency,
            "time_to_first_token":
                None if first is None else max(0.0, self._clock.now() - (time.monotonic() - first) - job.submitted_at),
        })

    def _frames(self, media: Media, claim: Claim) -> dict[str, Frames]:
        """The frames that `media` needs, by digest. Most came with the claim."""
        missing = [digest for digest in media.wanted if digest not in claim.clips]
        clips = {**claim.clips, **(self._store.clips(missing, claim, self._clock.now()) if missing else {})}
        if not all(digest in clips for digest in media.wanted):
            raise BadMedia("The frames of this job have expired; submit it again.")
        return {digest: decode_frames(clips[digest], part.size) for digest, part in media.wanted.items()}

    def _result(self, job: Job, claim: Claim, outcome: Outcome, timings: Timings) -> Result:
        now = self._clock.now()
        tokens = outcome.usage.completion_tokens
        rate = (tokens - 1) / outcome.decode if outcome.decode and tokens > 1 else None
        error = outcome.error
        return Result(
            job=job.id, conversation=job.conversation, turn=job.turn, text=outcome.text, reasoning=outcome.reasoning,
            finish_reason=outcome.finish_reason,
            error=None if error is None else Failure(code=error.code, message=str(error)),
            usage=outcome.usage,
            timings=timings.model_copy(update={"end_to_end": max(0.0, now - job.submitted_at)}),
            tokens_per_second=rate, worker=self._identity.worker, device=self._identity.device,
            model=self._identity.models[0], attempt=claim.attempt, metadata=job.metadata, finished_at=now,
            history=self._failed_history(claim, error, now),
        )

    def _failed_history(self, claim: Claim, error: SailqError | None, now: float) -> tuple[Attempt, ...]:
        """The attempts that led to an error, if a retry could succeed; else empty."""
        if error is None or not Failure(code=error.code, message="").may_pass:
            return ()
        this = Attempt(attempt=claim.attempt, worker=self._identity.worker, started_at=now,
                       cause=f"error: {error}"[:_MAX_CAUSE])
        return (*attempts(claim.fields.get(b"history")), this)


def _deadline(job: Job, claim: Claim, now: float) -> float | None:
    """The earlier of the job's deadline and RQ's `job_timeout`, as `time.monotonic`; None if it has neither."""
    left = [] if job.deadline is None else [job.deadline - now]
    if left and left[0] <= 0:
        raise DeadlineExceeded("The job's deadline had passed before a worker was free.")
    with suppress(ValueError):
        if (timeout := float(claim.fields.get(b"timeout", b"-1"))) > 0:
            left.append(timeout)
    return time.monotonic() + min(left) if left else None
