"""Waits for many jobs over one connection."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import redis

from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.connection import server_errors
from sailq.shared.errors import NotFound
from sailq.shared.jobs import Result
from sailq.shared.scripts import script

from .replies import KEEP_SECONDS, LOOK_SECONDS, Chunk, Inbox, StreamReader, not_found, told_of


@dataclass
class News:
    """The result of one poll: new text by job, and how jobs ended (NotFound: the job was deleted)."""

    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    ended: list[tuple[str, Result | NotFound]] = field(default_factory=list)


class Waiter:
    """Follows a changing set of jobs. One inbox reports their ends. A job that ended is no longer followed."""

    def __init__(self, connection: redis.Redis, inbox: Inbox, jobs: Iterable[str] = (), *, text: bool = False) -> None:
        """`text`: whether to read the jobs' streams, too."""
        self._connection, self._inbox, self._text = connection, inbox, text
        self._readers: dict[str, StreamReader] = {}
        self._unseen: list[str] = []
        self._unsure: set[str] = set()  # jobs of this inbox without a result, which may have expired
        self._position: bytes | None = None
        self._looked = time.monotonic()
        self._follow = script(connection, "follow")
        for job in jobs:
            self.add(job)

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, job: str) -> None:
        if job not in self._readers:
            self._readers[job] = StreamReader()
            self._unseen.append(job)

    def poll(self, seconds: float) -> News:
        """Waits up to `seconds` for news. Raises ServerUnavailable."""
        news = News()
        with server_errors(self._connection):
            if self._position is None and not self._inbox.made and (done := self._have_ended()) == self._unseen:
                ended, self._unseen = done, []  # works without an inbox and without the right to write
            else:
                if self._position is None:
                    self._position = self._newest()
                ended = self._take_up(news) if self._unseen else []
            if not self._readers or news.ended:
                return news
            streams = {keys.stream(job): reader.position for job, reader in self._readers.items()} if self._text else {}
            jobs = {keys.stream(job).encode(): job for job in self._readers}
            block = 1 if ended else max(1, int(min(seconds, LOOK_SECONDS) * 1000))
            inbox = {} if self._position is None else {keys.inbox(self._inbox.name): self._position}
            told = self._connection.xread({**inbox, **streams}, block=block) if inbox or streams else []
            for key, entries in told or []:
                if key in jobs:
                    news.chunks[jobs[key]] = self._readers[jobs[key]].feed(entries)
                else:
                    self._position = entries[-1][0]
                    ended += [job for job in told_of(entries) if job in self._readers]
            self._end([*ended, *(job for job in news.chunks if self._readers[job].ended)], news)
            if self._readers and time.monotonic() - self._looked >= LOOK_SECONDS:
                self._look(news)
        return news

    def _newest(self) -> bytes:
        self._inbox.keep(self._connection)
        newest = self._connection.xrevrange(keys.inbox(self._inbox.name), count=1)
        return newest[0][0] if newest else b"0"

    def _take_up(self, news: News) -> list[str]:
        """Makes new jobs report to the inbox. Returns those that have already ended."""
        self._unseen = [job for job in self._unseen if job not in self._inbox or self._age(job) >= 0]
        ended = self._have_ended()
        unseen, self._unseen = self._unseen, []
        waiting = [job for job in unseen if job not in ended]
        self._unsure.update(job for job in waiting if job in self._inbox and self._is_old(job))
        return ended + self._follow_all([job for job in waiting if job not in self._inbox], news)

    def _age(self, job: str) -> int:
        """Milliseconds from the job's submission to the inbox entry that was read last; below 0, the inbox will report
        the job's end. If two clocks differ, the next `_look` finds it."""
        return int((self._position or b"0").partition(b"-")[0]) - int(job[:12], 16)

    def _is_old(self, job: str) -> bool:
        """Whether the job's result may have expired. The inbox's newest entry is at most a minute old."""
        return self._inbox.result_ttl <= KEEP_SECONDS or self._age(job) > 1000 * KEEP_SECONDS

    def _follow_all(self, jobs: list[str], news: News) -> list[str]:
        """The jobs that have ended. Makes the others report to the inbox."""
        if not jobs:
            return []
        ended = []
        with self._connection.pipeline(transaction=False) as pipeline:
            for job in jobs:
                self._follow(keys=[keys.job(job), keys.result(job)], args=[self._inbox.name], client=pipeline)
            for job, state in zip(jobs, pipeline.execute(raise_on_error=False), strict=True):
                if isinstance(state, redis.OutOfMemoryError):
                    continue  # `_look` will find its end
                if isinstance(state, redis.RedisError):
                    raise state
                if state == b"finished":
                    ended.append(job)
                elif state == b"gone":
                    del self._readers[job]
                    news.ended.append((job, not_found(job)))
        return ended

    def _have_ended(self) -> list[str]:
        """The new jobs that already have results."""
        results = self._connection.mget([keys.result(job) for job in self._unseen]) if self._unseen else []
        return [job for job, result in zip(self._unseen, results, strict=True) if result is not None]

    def _look(self, news: News) -> None:
        """Finds the ends that no inbox reports: deleted jobs, and jobs whose end was lost in a failover."""
        self._looked = time.monotonic()
        self._inbox.keep(self._connection)
        unsure, self._unsure = [job for job in self._unsure if job in self._readers], set()
        self._end(self._follow_all(unsure, news), news)
        jobs = list(self._readers)
        if not jobs:
            return
        with self._connection.pipeline(transaction=False) as pipeline:
            there, done = pipeline.exists(*map(keys.job, jobs)).exists(*map(keys.result, jobs)).execute()
        if done:
            results = self._connection.mget([keys.result(job) for job in jobs])
            self._end_late([job for job, result in zip(jobs, results, strict=True) if result is not None], news)
        if there + done < len(jobs):
            jobs = list(self._readers)
            with self._connection.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    pipeline.exists(keys.job(job))
                # A missing job may have ended between the two commands.
                self._end_late([job for job, exists in zip(jobs, pipeline.execute(), strict=True) if not exists], news)

    def _end_late(self, jobs: list[str], news: News) -> None:
        """Ends jobs whose last text may have come after the streams were read."""
        streams = {keys.stream(job): job for job in jobs if job in self._readers} if self._text else {}
        if streams:
            told = self._connection.xread({key: self._readers[job].position for key, job in streams.items()})
            for key, entries in told or []:
                job = streams[key.decode()]
                news.chunks[job] = [*news.chunks.get(job, []), *self._readers[job].feed(entries)]
        self._end(jobs, news)

    def _end(self, jobs: Iterable[str], news: News) -> None:
        jobs = [job for job in dict.fromkeys(jobs) if job in self._readers]
        if not jobs:
            return
        for job, data in zip(jobs, self._connection.mget([keys.result(job) for job in jobs]), strict=True):
            del self._readers[job]
            news.ended.append((job, decode(Result, data) if data else not_found(job)))
