"""The page and its archive, as parts of the gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import redis

from sailq.shared.connection import connect
from sailq.shared.settings import Settings

from ...archive.archiver import Archiver, WriterLock
from ...archive.retention import Retention
from ...archive.store import Archive
from ..keys import Keys
from .fleet import Fleet, Glance
from .live import Live
from .sessions import Sessions
from .views import Views

_FLEET_SECONDS = 5.0
_QUESTION_BYTES = 64 * 1024
"""What a question adds to its file."""


class Page:
    """Archives results while the gateway runs, and shows them.

    Attributes:
        most_bytes: the largest file that a question may be about.
    """

    def __init__(self, path: Path, retention: Retention, keys: Keys, *, max_body: int) -> None:
        """`max_body`: bytes of a request's body.

        Raises BadRequest for a file that is not an archive, or that another process archives to.
        """
        self.most_bytes = max_body * 3 // 4 - _QUESTION_BYTES  # a file is sent in base64
        self._lock = WriterLock(path)
        Archive(path, create=True).close()
        self._path, self._retention = path, retention
        self.views, self.sessions = Views(), Sessions(keys)
        self.live, self._fleet = Live(self.views.caption_event), Fleet()
        self._archiver: Archiver | None = None

    @property
    def glance(self) -> Glance:
        """The last known state of the fleet, and of the archive."""
        seen = self._fleet.glance
        if not seen.problem and self._archiver is not None and self._archiver.failing:
            return replace(seen, problem="No results are archived; the gateway's log says why.")
        return seen

    def archive(self) -> Archive:
        """A connection for one request."""
        return Archive(self._path)

    @asynccontextmanager
    async def running(self, settings: Settings) -> AsyncIterator[None]:
        """Archives inside the block."""
        stop = threading.Event()
        self.live.begin()
        with (
            connect(settings.redis_url, retries=0) as connection,  # both try again by themselves
            Archive(self._path) as archive,
            closing(self._lock),
        ):
            self._archiver = Archiver(connection, archive, self._retention, self.live.publish)
            archiving = asyncio.create_task(asyncio.to_thread(self._archiver.run, stop))
            watching = asyncio.create_task(self._watch(connection))
            try:
                yield
            finally:
                watching.cancel()
                stop.set()
                await archiving

    async def _watch(self, connection: redis.Redis) -> None:
        """Looks at the fleet, and tells open pages."""
        while True:
            await asyncio.to_thread(self._fleet.look, connection)
            self.live.send([self.views.fleet_event(self.glance)])
            await asyncio.sleep(_FLEET_SECONDS)
