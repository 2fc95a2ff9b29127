"""All that one event loop waits for, read by one task over one connection, however many wait."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import redis.asyncio

from ..shared import keys
from ..shared.connection import server_errors
from ..shared.errors import SailqError
from .replies import BLOCK_SECONDS, Chunk, Entry, StreamReader, not_found

_PAUSE = 0.02
"""Seconds between two reads: what comes meanwhile is read together, and a worker writes no more often."""
_BELL_TTL = 60

Mail = asyncio.Queue[tuple[str, list[Chunk] | SailqError | None]]
"""(job, new text), (job, None) when the job has its result, or (job, why nothing more will come)."""


class _Follower:
    def __init__(self, mail: Mail) -> None:
        self.mail = mail
        self.reader = StreamReader()


class Mailroom:
    """Reads the streams of all followed jobs with one XREAD and hands each follower its own mail."""

    def __init__(self, connection: redis.asyncio.Redis) -> None:
        self._connection = connection
        self._followers: dict[str, list[_Follower]] = {}
        self._unseen: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._outdated = False
        """Whether somebody follows a job that the XREAD now waiting does not read."""
        # A stream of no job: an entry in it ends an XREAD that waits, so that a new job can join.
        self._bell = keys.stream(f"bell-{secrets.token_hex(8)}")
        self._heard = b"0"

    @contextmanager
    def follow(self, jobs: Iterable[str]) -> Iterator[Mail]:
        """The mail of `jobs`, each from its first word on."""
        mail: Mail = asyncio.Queue()
        followers = {job: _Follower(mail) for job in jobs}
        for job, follower in followers.items():
            self._followers.setdefault(job, []).append(follower)
        self._unseen.update(followers)
        self._outdated = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        elif self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring())
        try:
            yield mail
        finally:
            for job, follower in followers.items():
                others = self._followers.get(job, [])
                if follower in others:
                    others.remove(follower)
                if not others:
                    self._followers.pop(job, None)

    async def close(self) -> None:
        for task in (self._reading, self._ringing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _ring(self) -> None:
        while self._outdated and self._followers:
            async with self._connection.pipeline(transaction=False) as pipeline:
                pipeline.xadd(self._bell, {"ring": 1}, maxlen=1)
                pipeline.expire(self._bell, _BELL_TTL)
                with server_errors(self._connection):
                    await pipeline.execute()
            await asyncio.sleep(_PAUSE)

    async def _read(self) -> None:
        try:
            with server_errors(self._connection):
                while self._followers:
                    await self._read_once()
                    await asyncio.sleep(_PAUSE)
        except SailqError as error:
            for job in list(self._followers):
                self._tell(job, error)

    async def _read_once(self) -> None:
        unseen, self._unseen = self._unseen & self._followers.keys(), set()
        finished = await self._look_up(unseen, finished_too=False)
        # Only those that are there now: one who joins while this waits has to begin at the first entry.
        followers = {keys.stream(job).encode(): (job, list(some)) for job, some in self._followers.items()}
        positions: dict[str | bytes, bytes] = {self._bell: self._heard}
        for key, (_, some) in followers.items():
            positions[key] = min((one.reader.position for one in some), key=_order)
        self._outdated = False
        replies = await self._connection.xread(positions, block=1 if finished else int(BLOCK_SECONDS * 1000))
        for key, entries in replies or []:
            if key in followers:
                finished.discard(followers[key][0])
                self._deliver(*followers[key], entries)
            else:
                self._heard = entries[-1][0]
        # A result outlives its stream: what had finished before it was followed may have none.
        for job in finished:
            self._tell(job, None)
        if not replies and not finished:  # a stream that expired unread says nothing any more
            await self._look_up(self._followers.keys(), finished_too=True)

    def _deliver(self, job: str, followers: list[_Follower], entries: list[Entry]) -> None:
        for follower in followers:
            chunks = follower.reader.feed(entries)
            if chunks:
                follower.mail.put_nowait((job, chunks))
            if follower.reader.ended:
                follower.mail.put_nowait((job, None))
        still = [one for one in self._followers.get(job, []) if not one.reader.ended]
        if still:
            self._followers[job] = still
        else:
            self._followers.pop(job, None)

    async def _look_up(self, jobs: Iterable[str], *, finished_too: bool) -> set[str]:
        """Tells the followers of jobs that vanished, and perhaps of those that finished; returns the latter."""
        jobs = list(jobs)
        if not jobs:
            return set()
        async with self._connection.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.exists(keys.job(job))
                pipeline.exists(keys.result(job))
            replies = await pipeline.execute()
        for job, waiting, done in zip(jobs, replies[::2], replies[1::2], strict=True):
            if done and finished_too:
                self._tell(job, None)
            elif not waiting and not done:
                self._tell(job, not_found(job))
        return {job for job, done in zip(jobs, replies[1::2], strict=True) if done}

    def _tell(self, job: str, last: SailqError | None) -> None:
        for follower in self._followers.pop(job, []):
            follower.mail.put_nowait((job, last))


def _order(position: bytes) -> tuple[int, int]:
    """Stream ids are `milliseconds-number`."""
    milliseconds, _, number = position.partition(b"-")
    return int(milliseconds), int(number or 0)
