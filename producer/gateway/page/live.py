"""Events, sent to all open pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ...archive.caption import Caption

_BEHIND = 200
"""Events that may wait for one slow page. When there are more, the oldest are dropped; the page can be reloaded."""
_QUIET_SECONDS = 10.0
"""Seconds without an event after which a comment is sent: proxies end quiet connections."""


class Live:
    """Server-sent events for the open pages. Each is made once for all of them.

    `publish` is called from the archive's thread, all else in the event loop.
    """

    def __init__(self, render: Callable[[Caption], bytes]) -> None:
        """`render`: the event of a caption."""
        self._render = render
        self._pages: set[asyncio.Queue[bytes]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """Ends the streams of all pages, so that the gateway can stop."""
        self._ended = True
        for queue in self._pages:
            _put(queue, b"")

    def publish(self, captions: Sequence[Caption]) -> None:
        if self._pages and self._loop is not None and captions:
            events = [self._render(caption) for caption in captions[-_BEHIND:]]
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.send, events)

    def send(self, events: Sequence[bytes]) -> None:
        for queue in self._pages:
            for event in events:
                _put(queue, event)

    async def stream(self, may_go_on: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The events for one page, until it disconnects or the gateway stops. Ends, too, when `may_go_on`, which is
        asked every ten seconds, is false."""
        asked = time.monotonic()
        with self._page() as queue:
            yield b"retry: 2000\n\n"
            while not self._ended:
                try:
                    event = await asyncio.wait_for(queue.get(), _QUIET_SECONDS)
                except asyncio.TimeoutError:
                    event = b": waiting\n\n"
                if time.monotonic() - asked >= _QUIET_SECONDS:
                    asked = time.monotonic()
                    if not may_go_on():
                        return
                if event:
                    yield event

    @contextmanager
    def _page(self) -> Iterator[asyncio.Queue[bytes]]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(_BEHIND)
        self._pages.add(queue)
        try:
            yield queue
        finally:
            self._pages.discard(queue)


def _put(queue: asyncio.Queue[bytes], event: bytes) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
