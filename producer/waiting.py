"""Waiting for many jobs over one connection."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import redis

from ..shared import keys
from ..shared.connection import server_errors
from ..shared.errors import NotFound
from ..shared.jobs import Result
from .replies import BLOCK_SECONDS, Chunk, StreamReader, not_found, read_result


@dataclass
class News:
    """What one poll brought: new text by job, and how jobs ended (NotFound: they vanished)."""

    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    ended: list[tuple[str, Result | NotFound]] = field(default_factory=list)


class Waiter:
    """Follows a changing set of jobs. A job that ended is followed no more."""

    def __init__(self, connection: redis.Redis, jobs: Iterable[str] = ()) -> None:
        self._connection = connection
        self._readers: dict[str, StreamReader] = {}
        self._unseen: list[str] = []
        self._looked = time.monotonic()
        for job in jobs:
            self.add(job)

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, job: str) -> None:
        if job not in self._readers:
            self._readers[job] = StreamReader()
            self._unseen.append(job)

    def poll(self, seconds: float) -> News:
        """What is new, waiting at most `seconds` for it. Raises ServerUnavailable."""
        news = News()
        with server_errors(self._connection):
            finished = self._drop_vanished(self._unseen, news) if self._unseen else []
            self._unseen = []
            if not self._readers or news.ended:
                return news
            positions = {keys.stream(job): reader.position for job, reader in self._readers.items()}
            jobs = {keys.stream(job).encode(): job for job in self._readers}
            block = 1 if finished else max(1, int(seconds * 1000))
            for key, entries in self._connection.xread(positions, block=block) or []:
                news.chunks[jobs[key]] = self._readers[jobs[key]].feed(entries)
            # A result outlives its stream: what had finished before it was followed may have none.
            finished = [job for job in finished if job not in news.chunks]
            self._end([*finished, *(job for job in news.chunks if self._readers[job].ended)], news)
            if not news.chunks and time.monotonic() - self._looked >= BLOCK_SECONDS:
                # A stream that expired unread says nothing any more.
                self._end(self._drop_vanished(list(self._readers), news), news)
                self._looked = time.monotonic()
        return news

    def _drop_vanished(self, jobs: list[str], news: News) -> list[str]:
        """Notes in `news` which of `jobs` are gone; returns those that have a result."""
        with self._connection.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.exists(keys.job(job))
                pipeline.exists(keys.result(job))
            replies = pipeline.execute()
        finished = []
        for job, waiting, done in zip(jobs, replies[::2], replies[1::2], strict=True):
            if done:
                finished.append(job)
            elif not waiting:
                del self._readers[job]
                news.ended.append((job, not_found(job)))
        return finished

    def _end(self, jobs: list[str], news: News) -> None:
        if not jobs:
            return
        for job, data in zip(jobs, self._connection.mget([keys.result(job) for job in jobs]), strict=True):
            del self._readers[job]
            result = read_result(job, data, exists=1)
            news.ended.append((job, result or NotFound(f"Job {job!r} ended, but its result expired.")))
