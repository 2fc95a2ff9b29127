"""Events, sent to all open pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ...archive.caption import Caption

_PAUSE_SECONDS = 0.5
"""The least pause between two writes to a page: a write to 200 pages takes as long as many captions do."""
_MOST_EVENTS = 200
"""The most events of one write; older ones are dropped, and the page can be loaded again."""
_BEHIND = 20
"""Writes that may wait for a slow page; older ones are dropped."""
_CHECK_SECONDS = 10.0


class Live:
    """Server-sent events for the open pages. Each is made once for all of them.

    `publish` is called from the archive's thread, all else in the event loop.
    """

    def __init__(self, render: Callable[[Caption], bytes]) -> None:
        """`render`: the event of a caption."""
        self._render = render
        self._pages: set[asyncio.Queue[bytes]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._written = float("-inf")
        self._ended = False

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """Ends the streams of all pages, so that the gateway can stop."""
        self._ended = True
        self._write(b"")

    def publish(self, captions: Sequence[Caption]) -> None:
        if self._pages and self._loop is not None and captions:
            events = [self._render(caption) for caption in captions[-_MOST_EVENTS:]]
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.send, events)

    def send(self, events: Sequence[bytes]) -> None:
        """Sends events to all pages: at once, or together with others half a second after the last ones."""
        self._waiting = [*self._waiting, *events][-_MOST_EVENTS:]
        if self._timer is None:
            pause = max(0.0, self._written + _PAUSE_SECONDS - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause, self._flush)

    def _flush(self) -> None:
        self._timer, self._written = None, time.monotonic()
        self._write(b"".join(self._waiting))
        self._waiting = []

    def _write(self, data: bytes) -> None:
        for queue in self._pages:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(data)

    async def stream(self, may_go_on: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The events for one page, until it disconnects or the gateway stops. Ends, too, when `may_go_on`, which is
        asked every ten seconds, is false."""
        asked = time.monotonic()
        with self._page() as queue:
            yield b"retry: 2000\n\n"
            while not self._ended:
                data = await queue.get()  # something comes every few seconds: the state of the fleet
                if time.monotonic() - asked >= _CHECK_SECONDS:
                    asked = time.monotonic()
                    if not may_go_on():
                        return
                if data:
                    yield data

    @contextmanager
    def _page(self) -> Iterator[asyncio.Queue[bytes]]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(_BEHIND)
        self._pages.add(queue)
        try:
            yield queue
        finally:
            self._pages.discard(queue)
