"""Reads the inbox and all followed streams of one event loop with one task and one connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import redis.asyncio

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import SailqError
from sailq.shared.scripts import text

from .replies import LOOK_SECONDS, Chunk, Entry, Inbox, StreamReader, not_found, told_of

_PAUSE = 0.02
"""Seconds between two reads. Entries that come meanwhile are read together. A worker does not write more often."""

Events = asyncio.Queue[tuple[str, list[Chunk] | SailqError | None]]
"""(job, new text), (job, None) when the job has its result, or (job, why nothing more will come)."""


class _Follower:
    def __init__(self, events: Events) -> None:
        self.events = events
        self.reader = StreamReader()


class StreamListener:
    """Reads the inbox and the streams of all followed jobs with one XREAD and hands each follower its own events."""

    def __init__(self, connection: redis.asyncio.Redis, inbox: Inbox) -> None:
        self._connection, self._inbox = connection, inbox
        self._follow = connection.register_script(text("follow"))
        self._followers: dict[str, list[_Follower]] = {}
        self._unseen: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._outdated = False
        """Whether a job was added that the current XREAD does not read."""
        self._position: bytes | None = None
        self._looked = time.monotonic()

    @contextmanager
    def follow(self, jobs: Iterable[str]) -> Iterator[Events]:
        """Yields a queue of the events of `jobs`, from the start of each job's text."""
        events: Events = asyncio.Queue()
        followers = {job: _Follower(events) for job in jobs}
        for job, follower in followers.items():
            self._followers.setdefault(job, []).append(follower)
        self._unseen.update(followers)
        self._outdated = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        elif self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring())
        try:
            yield events
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
        """Ends the current XREAD, so that the next one includes a new job."""
        while self._outdated and self._followers:
            with suppress(redis.OutOfMemoryError), server_errors(self._connection):
                await self._connection.xadd(keys.inbox(self._inbox.name), {"job": ""})
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
        inbox = keys.inbox(self._inbox.name)
        if self._inbox.due:
            with suppress(redis.OutOfMemoryError):  # see `Inbox.keep`
                async with self._connection.pipeline(transaction=False) as pipeline:
                    self._inbox.renew(pipeline)
                    await pipeline.execute()
            self._inbox.kept()
        if self._position is None:
            newest = await self._connection.xrevrange(inbox, count=1)
            self._position = newest[0][0] if newest else b"0"
        unseen, self._unseen = self._unseen & self._followers.keys(), set()
        ended = await self._take_up(unseen)
        # Only current followers: one that joins during this await must start at the first entry.
        followers = {keys.stream(job).encode(): (job, list(some)) for job, some in self._followers.items()}
        positions: dict[str | bytes, bytes] = {inbox: self._position}
        for key, (_, some) in followers.items():
            positions[key] = min((one.reader.position for one in some), key=_order)
        self._outdated = False
        replies = await self._connection.xread(positions, block=1 if ended else int(LOOK_SECONDS * 1000))
        for key, entries in replies or []:
            if key in followers:
                self._deliver(*followers[key], entries)
            else:
                self._position = entries[-1][0]
                ended |= set(told_of(entries)) & self._followers.keys()
        for job in ended:
            self._tell(job, None)
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            await self._look()

    def _deliver(self, job: str, followers: list[_Follower], entries: list[Entry]) -> None:
        for follower in followers:
            chunks = follower.reader.feed(entries)
            if chunks:
                follower.events.put_nowait((job, chunks))
            if follower.reader.ended:
                follower.events.put_nowait((job, None))
        still = [one for one in self._followers.get(job, []) if not one.reader.ended]
        if still:
            self._followers[job] = still
        else:
            self._followers.pop(job, None)

    async def _take_up(self, jobs: set[str]) -> set[str]:
        """Makes new jobs report to the inbox. Returns those that have already ended."""
        results = await self._results(jobs)
        ended = {job for job, there in results.items() if there}
        for job in jobs - ended:
            state = b"unknown"
            with suppress(redis.OutOfMemoryError):  # `_look` will find its end
                state = await self._follow(keys=[keys.job(job), keys.result(job)], args=[self._inbox.name])
            if state == b"finished":
                ended.add(job)
            elif state == b"gone":
                self._tell(job, not_found(job))
        return ended

    async def _look(self) -> None:
        """Finds the ends that no inbox reports: deleted jobs, and jobs whose end was lost in a failover."""
        self._looked = time.monotonic()
        jobs = set(self._followers)
        if not jobs:
            return
        async with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(*map(keys.job, jobs)).exists(*map(keys.result, jobs))
            if await pipeline.execute() == [len(jobs), 0]:
                return
        async with self._connection.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.exists(keys.job(job))
            there = dict(zip(jobs, await pipeline.execute(), strict=True))
        for job, done in (await self._results(jobs)).items():
            if done:
                self._unseen.add(job)  # its last text may have come after the streams were read
            elif not there[job]:
                self._tell(job, not_found(job))

    async def _results(self, jobs: Iterable[str]) -> dict[str, bool]:
        """Whether each job has a result."""
        jobs = list(jobs)
        if not jobs:
            return {}
        found = await self._connection.mget([keys.result(job) for job in jobs])
        return {job: result is not None for job, result in zip(jobs, found, strict=True)}

    def _tell(self, job: str, last: SailqError | None) -> None:
        for follower in self._followers.pop(job, []):
            follower.events.put_nowait((job, last))


def _order(position: bytes) -> tuple[int, int]:
    """A stream id, `milliseconds-number`, as a sortable tuple."""
    milliseconds, _, number = position.partition(b"-")
    return int(milliseconds), int(number or 0)
