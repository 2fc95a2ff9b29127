"""Writes the results of all jobs to an archive, as they end."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.scripts import script

from ..results import EndedJob, ResultsReader
from .entries import entry_of
from .retention import Retention, trim
from .store import Archive, Caption

_WAIT_SECONDS = 1.0
"""How long one read waits for new results."""
_PAUSE_SECONDS = 1.0
"""The pause after an error: the server does not answer, or the disk is full."""
_log = logging.getLogger("sailq.archive")


class Archiver:
    """Reads the stream of ended jobs into an archive, whose `WriterLock` the caller holds. Each result is stored once,
    whenever this process dies: the position in the stream is part of the transaction that stores the results before it.

    Attributes:
        failing: whether the last step failed: the server does not answer, or the disk is full.
    """

    def __init__(
        self, connection: redis.Redis, archive: Archive, retention: Retention,
        told: Callable[[Sequence[Caption]], None] = lambda captions: None,
    ) -> None:
        """`told`: called with the captions that were stored."""
        self._connection, self._archive, self._retention, self._told = connection, archive, retention, told
        self._reader = ResultsReader(connection, archive.position)
        self._free = script(connection, "free")
        self.failing = False

    def run(self, stop: threading.Event) -> None:
        """Archives until `stop` is set. Goes on after an outage of the server, and when the disk has room again."""
        while not stop.is_set():
            try:
                self.step(_WAIT_SECONDS)
                if self.failing:
                    _log.info("results are archived again")
                self.failing = False
            except SailqError as error:
                if not self.failing:
                    _log.warning("no results are archived for now: %s", error)
                self.failing = True
                self._reader = ResultsReader(self._connection, self._archive.position)
                stop.wait(_PAUSE_SECONDS)

    def step(self, seconds: float) -> int:
        """Archives the next results; waits up to `seconds` for the first. Returns how many were new. Raises
        SailqError."""
        before = self._reader.position
        with server_errors(self._connection):
            ended = self._reader.read(seconds)
            clips = self._clips(ended)
        new: Sequence[Caption] = []
        if self._reader.position != before:
            new = self._archive.add([entry_of(one, clips) for one in ended], self._reader.position)
            self._told(new)
            with server_errors(self._connection):
                self._free(args=[word for one in ended if one.clips for word in (one.result.job, " ".join(one.clips))])
        trim(self._archive, self._retention, time.time())
        return len(new)

    def _clips(self, ended: Sequence[EndedJob]) -> dict[str, bytes]:
        """The clips of these jobs that are on the server, but not in the archive."""
        digests = list(dict.fromkeys(digest for one in ended for digest in one.clips))
        known = self._archive.known_clips(digests)
        found = {digest: self._archive.clip(digest) for digest in known}
        wanted = [digest for digest in digests if digest not in known]
        with self._connection.pipeline(transaction=False) as pipeline:
            for digest in wanted:
                pipeline.hget(keys.clip(digest), "data")
            found.update(zip(wanted, pipeline.execute(), strict=True))
        return {digest: data for digest, data in found.items() if data is not None}


class WriterLock:
    """The lock of the one process that archives to a file. It ends with the process.

    It is on a file of its own: SQLite's locks end when any descriptor of its file is closed.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadRequest if another process archives to the file."""
        name = path.with_name(f"{path.name}-writer")
        try:
            self._descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadRequest(f"{name} cannot be opened: {error.strerror}.") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BadRequest(f"Another process archives to {path}.") from None

    def close(self) -> None:
        os.close(self._descriptor)
