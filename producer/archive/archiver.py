"""Writes the results of all jobs to an archive, as they end."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import redis

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.scripts import script

from ..results import EndedJob, Position, ResultsReader
from .caption import Caption, Entry
from .entries import entry_of
from .retention import Retention, trim
from .store import Archive

_WAIT_SECONDS = 1.0
"""How long one read waits for new results."""
_BATCH_BYTES = 32 * 2**20
"""Bytes of clips after which a transaction ends, so that a step takes little memory."""
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
            except Exception as error:  # whatever it is, the next step may succeed
                if not self.failing:
                    unknown = not isinstance(error, SailqError)
                    _log.warning("no results are archived for now: %s", error, exc_info=unknown)
                self.failing = True
                with suppress(SailqError):  # makes room, if a full disk is the reason
                    trim(self._archive, self._retention, time.time())
                self._reader = ResultsReader(self._connection, self._archive.position)
                stop.wait(_PAUSE_SECONDS)

    def step(self, seconds: float) -> int:
        """Archives the next results; waits up to `seconds` for the first. Returns how many were new. Raises
        SailqError."""
        self._archive.check_in_place()
        before, new = self._reader.position, 0
        with server_errors(self._connection):
            ended = self._reader.read(seconds)
        entries: list[Entry] = []
        read: list[EndedJob] = []
        for one in ended:
            entry = self._entry(one)
            entries += [entry] if entry is not None else []
            read.append(one)
            if sum(len(clip) for entry in entries for clip in entry.clips.values()) > _BATCH_BYTES:
                new += self._store(entries, read, one.position)
                entries, read = [], []
        if self._reader.position != before:  # there may be entries after the last one that could be read
            new += self._store(entries, read, self._reader.position)
        trim(self._archive, self._retention, time.time())
        return new

    def _entry(self, ended: EndedJob) -> Entry | None:
        """None for a result that cannot be archived, which is logged: other programs may have written it."""
        with server_errors(self._connection):
            clips = self._clips(ended.clips)
        try:
            return entry_of(ended, clips)
        except Exception:
            _log.exception("the result of job %r cannot be archived", ended.result.job)
            return None

    def _store(self, entries: Sequence[Entry], read: Sequence[EndedJob], position: Position) -> int:
        new = self._archive.add(entries, position)
        self._told(new)
        with server_errors(self._connection):
            self._free(args=[word for one in read if one.clips for word in (one.result.job, " ".join(one.clips))])
        return len(new)

    def _clips(self, digests: Sequence[str]) -> dict[str, bytes]:
        """Those of these clips that are in the archive or on the server."""
        found: dict[str, bytes] = {}
        for digest in digests:
            data = self._archive.clip(digest)
            if data is None:
                try:
                    data = self._connection.hget(keys.clip(digest), "data")
                except redis.ResponseError as error:  # the key is not a hash, or this user may not read it
                    _log.warning("the clip %s cannot be read: %s", digest, error)
            if data is not None:
                found[digest] = data
        return found


class WriterLock:
    """The lock of the one process that archives to a file. It ends with the process.

    It is on a file of its own: SQLite's locks end when any descriptor of its file is closed.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadRequest if another process archives to the file."""
        path = path.resolve()
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
