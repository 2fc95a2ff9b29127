"""A worker's part of a job's life: it claims jobs, renews their leases, finishes them or hands them back, and puts the
jobs of workers that died back on their queues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis import OutOfMemoryError, Redis

from sailq.shared import keys
from sailq.shared.codec import MAX_RECORD_BYTES, decode, encode
from sailq.shared.errors import BadRequest, NotReplicated, TooLong
from sailq.shared.jobs import Attempt, Message, Result, TextPart, Turn, parse
from sailq.shared.rqjob import FAILURE_TTL, MAX_ATTEMPTS, RESULT_TTL, at, is_own, rq_result, rq_status
from sailq.shared.scripts import call_replicated, script
from sailq.shared.settings import Settings

LEASE_SECONDS = 4
"""A lease that was not renewed for so long has ended: another worker gets the job."""
_LOOKED_MS = 500
"""Milliseconds, at least, between two looks for jobs of dead workers, by all workers together."""
_SWEEP_SECONDS = 60
"""Seconds, at least, between two sweeps for clips and records that nobody needs."""
_CLAIMED_TTL = 86_400
"""Seconds that a claimed job's record stays. Without the record, its result could not be written."""
_MAX_HISTORY = 8
"""The newest attempts that a job remembers. There may be more: those that were handed back do not count."""


@dataclass(frozen=True, eq=False)
class Claim:
    """One attempt at a job.

    Attributes:
        job: the job's id, as it stood on the queue.
        execution: the attempt's random id, which fences what it writes.
        attempt: counts from 1.
        more: whether other jobs wait on its queue.
        last: whether the job has no attempt left after this one. This one counts from `JobStore.begin` on.
        fields: RQ's hash of the job; empty where it is too large, or the key is no hash.
        clips: bytes of its clips, by digest; without those that are gone, or too much for one reply.
        turns: encoded Turns of its conversation; their size in bytes, where that is too much for one reply.
    """

    job: str
    queue: str
    execution: str
    attempt: int
    more: bool
    last: bool
    fields: Mapping[bytes, bytes]
    clips: Mapping[str, bytes]
    turns: Sequence[bytes] | int

    @property
    def lease(self) -> str:
        return f"{self.job}:{self.execution}"


@dataclass(frozen=True)
class Recovered:
    """What a look for jobs of dead workers has found.

    Attributes:
        suspended: whether `rq suspend` keeps workers from taking jobs.
        back: jobs that are on their queues again.
        given_up: (job, execution) of jobs that have no attempt left. Their leases are this worker's, which ends them.
        cancelled: jobs that a tool of RQ's has cancelled.
        refused: (job, the feature of RQ's that it asks for and sailq does not have).
    """

    suspended: bool
    back: list[str]
    given_up: list[tuple[str, str]]
    cancelled: list[str]
    refused: list[tuple[str, str]]


class JobStore:
    """The transitions of jobs, as one worker makes them. Raises redis-py's errors."""

    def __init__(self, connection: Redis, waiting: Redis, settings: Settings, worker: str) -> None:
        """`waiting`: the connection for `claim`. It must not send a command again by itself."""
        self._connection, self._waiting, self._settings, self._worker = connection, waiting, settings, worker
        names = ("claim", "begin", "renew", "finish", "release", "recover", "hold")
        self._scripts = {name: script(connection, name) for name in names}

    def claim(
        self, queues: Sequence[str], execution: str, now: float, *, again: bool = False, idle: bool = True
    ) -> Claim | None:
        """The next job of the first queue that has one, leased to this worker; None where none waits.

        `execution`: a new id (`new_execution`). After an error, call it with the same id and `again`: the server may
        have given a job to the call that failed. `idle`: whether this worker has waited for a bell, which it rings
        again where it leaves jobs.
        """
        reply = self._scripts["claim"](keys=[keys.waiting(queue) for queue in queues], args=[
            self._worker, execution, LEASE_SECONDS, at(now), _CLAIMED_TTL, MAX_ATTEMPTS, _MAX_HISTORY,
            2 * MAX_RECORD_BYTES, int(again), int(idle),
        ], client=self._waiting)
        if not reply:
            return None
        job, queue, attempt, more, last, flat, clips, turns = reply
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        digests = fields.get(b"clips", b"").decode(errors="replace").split()
        return Claim(
            job.decode(errors="replace"), queue.decode(), execution, attempt, bool(more), bool(last), fields,
            {digest: clip for digest, clip in zip(digests, clips, strict=False) if clip}, turns,
        )

    def begin(self, claim: Claim) -> bool:
        """Counts a job's last attempt. False where the job has another attempt by now, or none."""
        return bool(self._scripts["begin"](keys=[keys.job(claim.job)], args=[claim.execution]))

    def renew(self, claims: Sequence[Claim]) -> tuple[set[str], set[str]]:
        """Renews the leases of claims. Returns the leases that are gone, and the leases of jobs that were cancelled, or
        deleted by a tool of RQ's."""
        gone: set[str] = set()
        ended: set[str] = set()
        for queue in {claim.queue for claim in claims}:
            leases = [claim.lease for claim in claims if claim.queue == queue]
            lost, over = self._scripts["renew"](keys=[f"rq:wip:{queue}"], args=[LEASE_SECONDS, *leases])
            gone |= {lease.decode() for lease in lost}
            ended |= {lease.decode() for lease in over}
        return gone, ended

    def finish(
        self, job: str, execution: str, result: Result, turn: Turn | None = None, *, replicated: bool = False
    ) -> bool:
        """Writes the result, tells those that wait for it, adds the turn to its conversation, releases the next turn
        and frees the clips: all of it, or nothing.

        A job whose error may pass is kept as a failed one for its `failure_ttl`. `execution` is "" for a job that
        nobody has claimed. False, with nothing written, where the job has another attempt by now, or none. With
        `replicated` it raises NotReplicated where fewer than `sync_replicas` replicas have confirmed the result; call
        it again then.
        """
        settings, status = self._settings, rq_status(result)
        wanted = settings.sync_replicas if replicated else 0
        written, replicas = call_replicated(
            self._scripts["finish"], [keys.job(job), keys.result(job)],
            [job, execution, encode(result), settings.result_ttl, b"" if turn is None else encode(turn),
             settings.conversation_ttl, settings.stream_ttl, status,
             FAILURE_TTL if status == "failed" else RESULT_TTL, result.finished_at, at(result.finished_at),
             settings.results_stream, *rq_result(result)],
            wanted, self._connection,
        )
        if written and replicas < wanted:
            raise NotReplicated(f"The result of job {job!r} is on {replicas} of {wanted} replicas.", job)
        return bool(written)

    def release(self, claim: Claim, cause: str, *, counts: bool = True) -> bool:
        """Puts a job back on its queue. `counts`: whether the attempt uses up one of the job's `MAX_ATTEMPTS`. False
        where the job has another attempt by now, or none."""
        return bool(self._scripts["release"](
            keys=[keys.job(claim.job)], args=[claim.job, claim.execution, cause, int(counts)]
        ))

    def recover(self, queues: Sequence[str]) -> Recovered:
        """Looks after the jobs of workers that died, unless another worker has just done so."""
        found = self._scripts["recover"](keys=[keys.waiting(queue) for queue in queues], args=[
            self._worker, _LOOKED_MS, LEASE_SECONDS, MAX_ATTEMPTS, _SWEEP_SECONDS, self._settings.conversation_ttl,
        ])
        back, given_up, cancelled, refused = ([text.decode(errors="replace") for text in some] for some in found[1:])
        return Recovered(bool(found[0]), back, list(zip(given_up[::2], given_up[1::2], strict=True)), cancelled,
                         list(zip(refused[::2], refused[1::2], strict=True)))

    def clips(self, digests: Sequence[str], claim: Claim, now: float) -> dict[str, bytes]:
        """Clips that did not come with the claim, by digest: those of earlier turns, and those of a job of RQ's own
        `enqueue`. Such a job holds them from now on."""
        if not is_own(claim.fields):
            held = [part for digest in digests for part in (digest, b"")]
            with suppress(OutOfMemoryError):  # who uploaded them holds them still
                self._scripts["hold"](
                    keys=[keys.job(claim.job)], args=[f"job:{claim.job}", now, _CLAIMED_TTL, 0, *held]
                )
        with self._connection.pipeline(transaction=False) as pipeline:
            for digest in digests:
                pipeline.hget(keys.clip(digest), "data")
            return {digest: clip for digest, clip in zip(digests, pipeline.execute(), strict=True) if clip}

    def fields(self, job: str) -> dict[bytes, bytes]:
        """RQ's hash of a job."""
        fields: dict[bytes, bytes] = self._connection.hgetall(keys.job(job))
        return fields

    def history(self, job: str) -> tuple[Attempt, ...]:
        """The job's last attempts in their order."""
        return attempts(self._connection.hget(keys.job(job), "history"))


def new_execution() -> str:
    return os.urandom(8).hex()


def attempts(noted: bytes | None) -> tuple[Attempt, ...]:
    """A job's history; none where it cannot be read."""
    with suppress(BadRequest, TypeError, ValueError):  # anybody may write to the server
        return tuple(parse(Attempt, attempt) for attempt in json.loads(noted or b"[]"))
    return ()


def said_before(claim: Claim) -> list[Message]:
    """What was said before this turn: the conversation's answered turns, in order."""
    if isinstance(claim.turns, int):
        raise TooLong(f"This conversation's turns take {claim.turns >> 20} MB: go on in a new one.")
    history: list[Message] = []
    for turn in (decode(Turn, data) for data in claim.turns):
        history.extend(turn.messages)
        history.append(Message(role="assistant", content=(TextPart(text=turn.text),)))
    return history
