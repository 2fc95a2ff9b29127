"""The state changes of jobs that a worker makes on the server: it claims jobs, renews their leases, finishes them,
hands them back, and recovers the jobs of dead workers."""

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
from sailq.shared.scripts import WORKER, call_replicated, script
from sailq.shared.settings import Settings

LEASE_SECONDS = 4
"""Seconds until a lease expires if it is not renewed. Another worker then gets the job."""
_LOOKED_MS = 500
"""The least milliseconds between two searches for jobs of dead workers, by all workers together."""
_SWEEP_SECONDS = 60
"""The least seconds between two sweeps for clips and records that nobody needs."""
_CLAIMED_TTL = 86_400
"""Seconds that a claimed job's record is kept. The result cannot be written without it."""
_MAX_HISTORY = 8
"""How many of its newest attempts a job remembers. A job can have more than `MAX_ATTEMPTS`, as some do not count."""


@dataclass(frozen=True, eq=False)
class Claim:
    """One attempt at a job.

    Attributes:
        job: the job's id, as read from the queue.
        execution: the attempt's random id. The server refuses writes of an attempt that was superseded.
        attempt: counts from 1.
        more: whether other jobs wait on its queue.
        last: whether this is the job's last attempt. It counts once `JobStore.begin` was called.
        fields: RQ's hash of the job; empty if it is too large, or the key is not a hash.
        clips: bytes of its clips, by digest, without those that expired or do not fit into the reply.
        turns: encoded Turns of its conversation, or their size in bytes if they do not fit into the reply.
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
    """The result of a search for jobs of dead workers.

    Attributes:
        suspended: whether `rq suspend` keeps workers from taking jobs.
        back: jobs that were put back on their queues.
        given_up: (job, execution) of jobs that have no attempt left. This worker holds their leases and must end them.
        cancelled: jobs that a tool of RQ's has cancelled.
        refused: (job, the feature of RQ that it needs and that sailq does not have).
    """

    suspended: bool
    back: list[str]
    given_up: list[tuple[str, str]]
    cancelled: list[str]
    refused: list[tuple[str, str]]


class JobStore:
    """The state changes of jobs that one worker makes. Raises redis-py's errors."""

    def __init__(self, connection: Redis, waiting: Redis, settings: Settings, worker: str) -> None:
        """`waiting`: the connection for `claim`. It must not retry commands."""
        self._connection, self._waiting, self._settings, self._worker = connection, waiting, settings, worker
        self._scripts = {name: script(connection, name) for name in WORKER}

    def claim(
        self, queues: Sequence[str], execution: str, now: float, *, again: bool = False, idle: bool = True
    ) -> Claim | None:
        """Claims the next job of the first queue that is not empty; None if all are empty.

        `execution`: a new id (`new_execution`). After an error, call it with the same id and `again`: the failed call
        may have claimed a job. `idle`: whether this worker has waited for a bell; it then rings the bell again if it
        leaves jobs on the queue.
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
        """Counts a job's last attempt. Returns False if the claim was superseded or the job has ended."""
        return bool(self._scripts["begin"](keys=[keys.job(claim.job)], args=[claim.execution]))

    def renew(self, claims: Sequence[Claim]) -> tuple[set[str], set[str]]:
        """Renews the leases of claims. Returns the leases that were lost, and the leases of jobs that were cancelled or
        that a tool of RQ deleted."""
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
        """Ends a job in one atomic step: writes the result, notifies its waiters, adds the turn to its conversation,
        queues the next turn and frees the clips.

        A job whose error may not recur is kept as a failed job for its `failure_ttl`. `execution` is "" for a job that
        nobody has claimed. Returns False, and writes nothing, if the attempt was superseded or the job has ended. With
        `replicated`, raises NotReplicated if fewer than `sync_replicas` replicas have confirmed the result; call it
        again then.
        """
        settings, status = self._settings, rq_status(result)
        wanted = settings.sync_replicas if replicated else 0
        written, replicas = call_replicated(
            self._scripts["finish"], [keys.job(job), keys.result(job)],
            [job, execution, encode(result), settings.result_ttl, b"" if turn is None else encode(turn),
             settings.conversation_ttl, settings.stream_ttl, status,
             FAILURE_TTL if status == "failed" else RESULT_TTL, result.finished_at, at(result.finished_at),
             settings.results_stream, settings.max_blob_bytes, *rq_result(result)],
            wanted, self._connection,
        )
        if written and replicas < wanted:
            raise NotReplicated(f"The result of job {job!r} is on {replicas} of {wanted} replicas.", job)
        return bool(written)

    def release(self, claim: Claim, cause: str, *, counts: bool = True) -> bool:
        """Puts a job back on its queue. `counts`: whether the attempt uses up one of the job's `MAX_ATTEMPTS`. Returns
        False if the attempt was superseded or the job has ended."""
        return bool(self._scripts["release"](
            keys=[keys.job(claim.job)], args=[claim.job, claim.execution, cause, int(counts)]
        ))

    def recover(self, queues: Sequence[str]) -> Recovered:
        """Recovers the jobs of dead workers, unless another worker has just done so."""
        found = self._scripts["recover"](keys=[keys.waiting(queue) for queue in queues], args=[
            self._worker, _LOOKED_MS, LEASE_SECONDS, MAX_ATTEMPTS, _SWEEP_SECONDS, self._settings.conversation_ttl,
        ])
        back, given_up, cancelled, refused = ([text.decode(errors="replace") for text in some] for some in found[1:])
        return Recovered(bool(found[0]), back, list(zip(given_up[::2], given_up[1::2], strict=True)), cancelled,
                         list(zip(refused[::2], refused[1::2], strict=True)))

    def clips(self, digests: Sequence[str], claim: Claim, now: float) -> dict[str, bytes]:
        """Clips that did not come with the claim, by digest: those of earlier turns, and those of a job from RQ's own
        `enqueue`. The server keeps the latter for such a job from now on."""
        if not is_own(claim.fields):
            held = [part for digest in digests for part in (digest, b"")]
            with suppress(OutOfMemoryError):  # the holder of the upload still keeps them
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
        """The job's last attempts, oldest first."""
        return attempts(self._connection.hget(keys.job(job), "history"))


def new_execution() -> str:
    return os.urandom(8).hex()


def attempts(noted: bytes | None) -> tuple[Attempt, ...]:
    """A job's history; empty if it cannot be read."""
    with suppress(BadRequest, TypeError, ValueError):  # other programs may have written it
        return tuple(parse(Attempt, attempt) for attempt in json.loads(noted or b"[]"))
    return ()


def said_before(claim: Claim) -> list[Message]:
    """The messages before this turn: those of the conversation's answered turns, in order. Raises TooLong."""
    if isinstance(claim.turns, int):
        raise TooLong(f"The turns of this conversation take {claim.turns >> 20} MB, too much: start a new one.")
    history: list[Message] = []
    for turn in (decode(Turn, data) for data in claim.turns):
        history.extend(turn.messages)
        history.append(Message(role="assistant", content=(TextPart(text=turn.text),)))
    return history
