"""Reads the results of all jobs, from the stream of ended jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import redis

from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.jobs import Job, Result
from sailq.shared.rqjob import queue_of, read_job

_log = logging.getLogger("sailq.results")


@dataclass(frozen=True)
class Position:
    """How far a reader has read.

    Attributes:
        entry: the id of the last entry that it has read.
        count: how many entries had been added to the stream by then.
    """

    entry: str = "0-0"
    count: int = 0


@dataclass(frozen=True)
class EndedJob:
    """One entry of the stream.

    Attributes:
        position: of this entry.
        job: what was asked; None where RQ's `enqueue` wrote it in another form, and for a very long one.
        clips: digests of its clips. The server holds them until an archive has taken them, for ten minutes at most.
    """

    position: Position
    result: Result
    job: Job | None
    clips: tuple[str, ...]


class ResultsReader:
    """Reads the stream from a position on. Creates the stream, after which the workers add to it.

    Any number of readers read independently of each other. `lost` counts the entries that the server has removed before
    this reader read them: it was more than `results_stream` (see Settings) jobs behind.
    """

    def __init__(self, connection: redis.Redis, position: Position) -> None:
        self._connection, self.position, self.lost = connection, position, 0

    def read(self, seconds: float, most: int = 50) -> list[EndedJob]:
        """The next entries, oldest first, and moves the position behind them. Waits up to `seconds` for the first.
        Entries that cannot be read are logged and left out. Raises redis-py's errors."""
        self._check()
        found = self._connection.xread({keys.RESULTS: self.position.entry}, most, max(1, round(1000 * seconds)))
        ended = []
        for entry, fields in found[0][1] if found else ():
            self.position = Position(entry.decode(), self.position.count + 1)
            if (one := _read(fields, self.position)) is not None:
                ended.append(one)
        return ended

    def _check(self) -> None:
        """Creates the stream if it is not there, counts lost entries, and reads a stream anew that has lost its end."""
        try:
            state = self._connection.xinfo_stream(keys.RESULTS)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            with self._connection.pipeline(transaction=True) as pipeline:
                pipeline.xadd(keys.RESULTS, {"job": ""}, id="0-1")
                pipeline.xdel(keys.RESULTS, "0-1")
                try:
                    pipeline.execute()
                except redis.ResponseError as error:
                    if "equal or smaller" not in str(error):  # another reader has just created it
                        raise
            self.position = Position("0-1", 1)
            return
        last, added, length = state["last-generated-id"].decode(), state["entries-added"], state["length"]
        # A first reading, or the server was restored, or is another one.
        if self.position == Position() or _number(last) < _number(self.position.entry):
            self.position = Position("0-1", added - length)
        if (lost := added - length - self.position.count) > 0:
            self.lost += lost
            self.position = Position(self.position.entry, added - length)
            _log.warning("%d results were removed from %s before they were read: SAILQ_RESULTS_STREAM is too small",
                         lost, keys.RESULTS)


def _read(fields: Mapping[bytes, bytes], position: Position) -> EndedJob | None:
    name = fields.get(b"job", b"").decode(errors="replace")
    try:
        result = decode(Result, fields.get(b"result", b""))
    except BadRequest as error:
        _log.warning("the result of job %r cannot be read: %s", name, error)
        return None
    job = None
    with suppress(SailqError):
        job = read_job(result.job, queue_of(fields), fields)
    return EndedJob(position, result, job, tuple(fields.get(b"clips", b"").decode(errors="replace").split()))


def _number(entry: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)
