"""Interprets the streams and results of jobs. It holds no connection, so that both clients share it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.errors import NotFound, WaitTimeout
from sailq.shared.jobs import Result

LOOK_SECONDS = 2.0
"""Seconds that one XREAD waits. Deleted jobs are noticed between two reads."""
KEEP_SECONDS = 60.0
_INBOX_TTL = 3600
_MOST_TOLD = 1000
"""The number of ended jobs that an inbox keeps when it is trimmed, once a minute. A slower waiter checks each job."""

Entry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True)
class Chunk:
    """A piece of a job's text, or of the thought before it.

    Attributes:
        text: empty if the piece is of the thought.
        restarted: set on the first piece of a new attempt. Discard all that was read before.
        reasoning: the piece of the thought, of a model that thinks.
    """

    text: str
    attempt: int
    restarted: bool = False
    reasoning: str = ""


class Inbox:
    """The stream that lists the ended jobs of one client. It expires an hour after the client's last use."""

    def __init__(self, name: str, result_ttl: float) -> None:
        """`name`: the suffix of all job ids of the client (see `IdFactory`). `result_ttl`: seconds, as in Settings."""
        self.name, self.result_ttl = name, result_ttl
        self._kept = float("-inf")

    def __contains__(self, job: str) -> bool:
        """Whether the job was submitted with this inbox."""
        return job.endswith(self.name)

    @property
    def made(self) -> bool:
        """Whether `keep` has been called."""
        return self._kept > float("-inf")

    @property
    def due(self) -> bool:
        """Whether the stream must be renewed, which happens once a minute."""
        return time.monotonic() - self._kept >= KEEP_SECONDS

    def kept(self) -> None:
        """Notes that `renew` was done."""
        self._kept = time.monotonic()

    def keep(self, connection: redis.Redis) -> None:
        """Creates the stream or renews its expiry, and trims old entries. A full server refuses this: waiters then
        check their jobs every `LOOK_SECONDS`."""
        if self.due:
            with suppress(redis.OutOfMemoryError), connection.pipeline(transaction=False) as pipeline:
                self.renew(pipeline)
                pipeline.execute()
            self.kept()

    def renew(self, pipeline: Any) -> None:
        """Adds the commands of `keep` to a pipeline of redis-py or of its asyncio client."""
        key = keys.inbox(self.name)
        pipeline.xadd(key, {"job": ""}, maxlen=_MOST_TOLD)
        pipeline.expire(key, _INBOX_TTL)


def told_of(entries: Iterable[Entry]) -> list[str]:
    """The job ids in an inbox's entries. Anybody may have written them."""
    return [fields.get(b"job", b"").decode(errors="replace") for _, fields in entries]


class StreamReader:
    """Turns a job's stream entries into chunks. Each character comes once, and only from the newest attempt."""

    def __init__(self) -> None:
        self.position = b"0"
        self.ended = False
        self._attempt = 0
        self._lengths = {b"text": 0, b"reasoning": 0}
        """Characters read of the newest attempt."""

    def feed(self, entries: Iterable[Entry]) -> list[Chunk]:
        """The chunks in entries read after `position`. Updates `position`."""
        chunks: list[Chunk] = []
        for position, fields in entries:
            self.position = position
            if b"end" in fields:
                self.ended = True
                break
            kind = b"text" if b"text" in fields else b"reasoning"
            try:
                attempt, at, text = int(fields[b"attempt"]), int(fields[b"at"]), fields[kind].decode()
            except (KeyError, ValueError):
                continue  # not written by sailq
            restarted = False
            if attempt > self._attempt:
                restarted = self._attempt > 0
                self._attempt, self._lengths = attempt, dict.fromkeys(self._lengths, 0)
            length = self._lengths[kind]
            if attempt < self._attempt or at + len(text) <= length:
                continue  # a superseded attempt, or an entry written twice
            new = text[max(0, length - at) :]
            self._lengths[kind] = at + len(text)
            said = {"text": new} if kind == b"text" else {"text": "", "reasoning": new}
            chunks.append(Chunk(**said, attempt=attempt, restarted=restarted))
        return chunks


class Patience:
    """The time that a caller still waits for something new. `timeout`: seconds; None: no limit."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self.renew()

    def renew(self) -> None:
        self._until = None if self._timeout is None else time.monotonic() + self._timeout

    def left(self) -> float:
        """Seconds left to wait, at most `LOOK_SECONDS`. Raises WaitTimeout if the time is over."""
        if self._until is None:
            return LOOK_SECONDS
        left = self._until - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"Nothing came within {self._timeout:g} s; the job goes on.")
        return min(left, LOOK_SECONDS)


def not_found(job: str) -> NotFound:
    return NotFound(f"There is no job {job!r}: it was never submitted, was deleted, or expired.")


def read_result(job: str, data: bytes | None, state: Sequence[bytes | None]) -> Result | None:
    """The result in `data`; None for a job that has not ended. Raises NotFound.

    `state`: the job's `status` and `ended_at`.
    """
    if data is not None:
        return decode(Result, data)
    status, ended_at = state
    if not status or ended_at:
        raise not_found(job)
    return None
