"""One job's way through a worker: claim, fetch, prepare, generate, finish."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Literal

import redis

from ..shared import keys
from ..shared.codec import MAX_RECORD_BYTES, decode
from ..shared.connection import OUTAGES, ServerClock
from ..shared.errors import BadMedia, BadRequest, DeadlineExceeded, SailqError, TooLong, Unsupported, quoted
from ..shared.frames import Frames, blob_limit, decode_frames
from ..shared.jobs import DIED, HANDED_BACK, Failure, Job, Message, Result, TextPart, Timings, Turn, is_identifier
from ..shared.lifecycle import Claim, Lifecycle, keep_blobs
from .bounded_read import TooLarge, bounded_read
from .engine import Engine
from .engine.preparation import Media
from .publisher import Publisher, Stream
from .scheduler import Outcome, Request, Scheduler
from .shared_lock import SharedLock

_MAX_HISTORY_BYTES = 16 * 2**20
"""What a conversation's turns may take on the server."""
_MAX_CAUSE = 500
"""Characters of an error that a job's history keeps."""

_OUTAGE_SECONDS = 0.25

_log = logging.getLogger("sailq.worker")


@dataclass(frozen=True)
class Identity:
    """How results name their maker. `models`: the names by which jobs may ask for it, its own first."""

    worker: str
    device: str
    models: tuple[str, ...]


class HandedBack(Exception):
    """This worker leaves before the job's answer is complete: another attempt makes it anew."""


class Superseded(Exception):
    """A newer attempt has the job, and has not finished it."""


class Executor:
    """Runs jobs, one a thread, through one scheduler. `run` is the function that RQ calls."""

    def __init__(
        self, connection: redis.Redis, engine: Engine, scheduler: Scheduler, publisher: Publisher,
        lifecycle: Lifecycle, identity: Identity, *, blob_ttl: int,
        on_result: Callable[[Result], None] = lambda result: None,
    ) -> None:
        """`on_result` takes each result that was written, on its job's thread."""
        self._connection = connection
        self._engine = engine
        self._scheduler = scheduler
        self._publisher = publisher
        self._lifecycle = lifecycle
        self._identity = identity
        self._blob_ttl = blob_ttl
        self._on_result = on_result
        self._clock = ServerClock(connection)
        # A worker that lost its lease may be given the job again: two requests of one job.
        self._running: dict[Request, str] = {}
        self._lock = threading.Lock()
        self._leaving = False
        self._device = SharedLock()

    def run(self, job_id: str) -> None:
        """One attempt at a job, from claim to result. Every failure that is the job's own becomes its result.

        A job's last attempt has the device to itself: when a job takes its workers down, those that ran beside it
        each time are innocent, and must not end as it does.
        """
        with self._device.shared():
            claim = self._lifecycle.claim(job_id, self._identity.worker)
            if claim != "last":
                self._attempt(job_id, claim)
                return
        with self._device.alone():
            self._attempt(job_id, self._lifecycle.claim(job_id, self._identity.worker, alone=True))

    def _attempt(self, job_id: str, claim: Claim | Literal["done", "gone", "last"]) -> None:
        if claim == "done":
            return
        if isinstance(claim, str):
            raise BadRequest(f"There is no job {job_id!r}: it expired, or nobody submitted it through sailq.")
        claimed_at = self._clock.now()
        try:
            job = _read(claim.request, job_id)
        except SailqError as error:
            self.refuse(job_id, error, attempt=claim.attempt)
            return
        try:
            self._run_claimed(job, claim, claimed_at)
        except HandedBack:
            self._lifecycle.end_attempt(job_id, claim.attempt, HANDED_BACK, counts=False)
            raise
        except redis.RedisError as error:
            with suppress(redis.RedisError):
                self._lifecycle.end_attempt(job_id, claim.attempt, f"error: {type(error).__name__}")
            raise

    def refuse(self, job_id: str, error: SailqError, *, attempt: int | None = None) -> None:
        """An error result for what cannot be run: no readable job, or one that has had its attempts. What cannot even
        be a job's id has no result."""
        _log_refusal(job_id, error)
        if not is_identifier(job_id):
            return
        result = Result(
            job=job_id, conversation=job_id, turn=0, finish_reason="error",
            error=Failure(code=error.code, message=str(error)), worker=self._identity.worker,
            device=self._identity.device, model=self._identity.models[0], finished_at=self._clock.now(),
        )
        with suppress(SailqError):  # what is readable of the job is its owner's to have back
            job = _read(self._request(job_id), job_id)
            result = result.model_copy(update={
                "conversation": job.conversation, "turn": job.turn, "metadata": job.metadata,
                "model": result.model if job.model in self._identity.models else job.model,
            })
        self._write(self._with_history(result), attempt)

    def _request(self, job_id: str) -> bytes:
        """The job's record; b"" where there is none, or one that is too large to be read."""
        if self._connection.hstrlen(keys.job(job_id), "request") > MAX_RECORD_BYTES:
            return b""
        return self._connection.hget(keys.job(job_id), "request") or b""

    def give_up(self, job_id: str) -> None:
        """An error result for a job whose worker died, at its last attempt."""
        causes = [attempt.cause for attempt in self._lifecycle.history(job_id) if attempt.cause != HANDED_BACK]
        self.refuse(job_id, SailqError(
            f"Given up after {len(causes)} attempts; workers that died while they ran this job: {causes.count(DIED)}."
        ))

    def may_be_taken(self, job_id: str) -> bool | None:
        """See `Lifecycle.may_be_taken`."""
        return self._lifecycle.may_be_taken(job_id)

    def cancel(self, job_id: str) -> None:
        """Cancels a job that runs here; nothing happens if it does not."""
        with self._lock:
            requests = [request for request, running in self._running.items() if running == job_id]
        for request in requests:
            request.cancel()

    def hand_back(self) -> None:
        """Ends every attempt that runs here, or begins later, with HandedBack."""
        with self._lock:
            self._leaving = True
            requests = list(self._running)
        for request in requests:
            request.cancel()

    def running(self) -> list[str]:
        """Ids of the jobs that the scheduler has."""
        with self._lock:
            return list(dict.fromkeys(self._running.values()))

    def _run_claimed(self, job: Job, claim: Claim, claimed_at: float) -> None:
        timings = Timings(queue_wait=max(0.0, claimed_at - job.submitted_at))
        stream = Stream(job.id, claim.attempt)
        try:
            if claim.cancelled:
                outcome = Outcome.unstarted("cancelled")
            else:
                outcome, timings = self._generate(job, stream, timings)
        except SailqError as error:
            if isinstance(error, DeadlineExceeded):
                outcome = Outcome.unstarted("deadline", error)
            else:
                _log_refusal(job.id, error)
                outcome = Outcome.unstarted("error", error)
        except (redis.RedisError, HandedBack):
            raise  # not the job's fault: RQ hands it to another attempt
        except Exception as error:
            _log.exception("job %s", job.id)
            failure = SailqError(f"The worker failed on this job: {type(error).__name__}.")
            outcome = Outcome.unstarted("error", failure)
        for trial in count():
            try:
                self._finish(job, claim, outcome, timings)
                return
            except OUTAGES as error:  # the answer is in hand, and made anew only if another attempt begins meanwhile
                if not trial:
                    _log.warning("job %s: its result is kept until the server takes it: %s", job.id, error)
            if self._leaving:
                raise HandedBack
            time.sleep(_OUTAGE_SECONDS)

    def _finish(self, job: Job, claim: Claim, outcome: Outcome, timings: Timings) -> None:
        """Writes what an attempt has come to, once, however often it is called."""
        result = self._result(job, claim, outcome, timings)
        answered = result.finish_reason in {"stop", "length"}
        turn = Turn(job=job.id, turn=job.turn, messages=job.messages, text=result.text) if answered else None
        if job.stream:
            self._publisher.flush()
        if result.error is not None and result.error.may_pass:
            self._lifecycle.end_attempt(job.id, claim.attempt, f"error: {result.error.message}"[:_MAX_CAUSE])
            result = self._with_history(result)
        if not self._write(result, claim.attempt, turn):
            written = self._connection.get(keys.result(job.id))
            # Called again after a lost reply, it finds what it wrote itself.
            if written is None or (result := decode(Result, written)).attempt != claim.attempt:
                _log.warning("job %s: another attempt has begun; this one's result is dropped", job.id)
                if written is None:
                    raise Superseded
                return
        if result.history and outcome.error is not None:
            raise outcome.error  # RQ lists it among its failed jobs, too

    def _write(self, result: Result, attempt: int | None, turn: Turn | None = None) -> bool:
        """See `Lifecycle.finish`."""
        written = self._lifecycle.finish(result, attempt=attempt, turn=turn)
        if written:
            self._on_result(result)
        return written

    def _generate(self, job: Job, stream: Stream, timings: Timings) -> tuple[Outcome, Timings]:
        if job.model not in self._identity.models:
            raise Unsupported(f"This worker serves {' and '.join(self._identity.models)}, not {job.model!r}.")
        deadline = None
        if job.deadline is not None:
            left = job.deadline - self._clock.now()
            if left <= 0:
                raise DeadlineExceeded("The job's deadline had passed before a worker was free.")
            deadline = time.monotonic() + left
        start = time.monotonic()
        messages = self._history(job) + list(job.messages)
        media = self._engine.media(messages)
        frames = self._frames(media)
        fetched = time.monotonic()
        prepared = self._engine.prepare(messages, frames, job.options, media)
        ready = time.monotonic()
        request = Request(
            prepared, job.options, deadline, job.priority,
            (lambda text: self._publisher.put(stream, text)) if job.stream else None,
        )
        with self._lock:
            if self._leaving:
                raise HandedBack
            self._running[request] = job.id
        try:
            self._scheduler.submit(request)
            outcome = request.wait()
        finally:
            with self._lock:
                del self._running[request]
        if self._leaving and outcome.finish_reason == "cancelled":
            raise HandedBack  # its producer may have cancelled it, too: the next attempt sees the mark
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

    def _history(self, job: Job) -> list[Message]:
        """What was said before this turn: the conversation's answered turns, in order."""
        history: list[Message] = []
        if not job.turn:
            return history
        try:
            turns = bounded_read(self._connection, _MAX_HISTORY_BYTES, "LRANGE", keys.turns(job.conversation), 0, -1)
        except TooLarge:
            raise TooLong(
                f"This conversation's turns take more than {_MAX_HISTORY_BYTES >> 20} MB: go on in a new one."
            ) from None
        for data in turns:
            turn = decode(Turn, data)
            history.extend(turn.messages)
            history.append(Message(role="assistant", content=(TextPart(text=turn.text),)))
        return history

    def _frames(self, media: Media) -> dict[str, Frames]:
        """The frames that are wanted, by blob digest; the blobs of all media live on."""
        if not media.parts:
            return {}
        wanted = media.wanted
        with self._connection.pipeline(transaction=False) as pipeline:
            for digest, part in wanted.items():
                pipeline.getrange(keys.blob(digest), 0, blob_limit(part.size))  # one byte too many is refused
            keep_blobs(pipeline, media.parts, self._clock.now(), self._blob_ttl)
            blobs = pipeline.execute()[: len(wanted)]
        frames: dict[str, Frames] = {}
        for (digest, part), blob in zip(wanted.items(), blobs, strict=True):
            if not blob:
                raise BadMedia("The frames of this job have expired; submit it again.")
            frames[digest] = decode_frames(blob, part.size)
        return frames

    def _result(self, job: Job, claim: Claim, outcome: Outcome, timings: Timings) -> Result:
        now = self._clock.now()
        tokens = outcome.usage.completion_tokens
        rate = (tokens - 1) / outcome.decode if outcome.decode and tokens > 1 else None
        error = outcome.error
        return Result(
            job=job.id, conversation=job.conversation, turn=job.turn, text=outcome.text,
            finish_reason=outcome.finish_reason,
            error=None if error is None else Failure(code=error.code, message=str(error)),
            usage=outcome.usage,
            timings=timings.model_copy(update={"end_to_end": max(0.0, now - job.submitted_at)}),
            tokens_per_second=rate, worker=self._identity.worker, device=self._identity.device,
            model=self._identity.models[0], attempt=claim.attempt, metadata=job.metadata, finished_at=now,
        )

    def _with_history(self, result: Result) -> Result:
        """`result` with the attempts that led to it, where another might have gone better."""
        if result.error is None or not result.error.may_pass:
            return result
        history = self._lifecycle.history(result.job)
        return result.model_copy(update={"history": history, "attempt": history[-1].attempt}) if history else result


def _log_refusal(job_id: str, error: SailqError) -> None:
    """One line for each, whatever the sender wrote into it."""
    _log.warning("refused %s: %s: %s", quoted(job_id), error.code, quoted(str(error)))


def _read(record: bytes, job_id: str) -> Job:
    """The job in a record; raises CodecError or BadRequest."""
    job = decode(Job, record)
    if job.id != job_id:
        raise BadRequest("The job's record names another job.")
    return job
