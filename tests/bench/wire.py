"""Connections of a simulated process: one trip at a time on each, and no more of them than the real one has."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from playback import Trip, Values, parse_replies


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer, self._count = b"", 0
        self._asked: asyncio.Future[list[Any]] | None = None
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def connect(cls, url: str) -> Wire:
        """`url`: redis://HOST:PORT/DB or unix://PATH?db=DB."""
        loop, parts = asyncio.get_running_loop(), urlsplit(url)
        if parts.scheme == "unix":
            _, wire = await loop.create_unix_connection(cls, parts.path)
            database = parse_qs(parts.query).get("db", ["0"])[0]
        else:
            _, wire = await loop.create_connection(cls, parts.hostname, parts.port)
            database = parts.path.strip("/") or "0"
        if database != "0":
            await wire.ask(b"SELECT %b\r\n" % database.encode(), 1)
        return wire

    def ask(self, data: bytes, count: int) -> asyncio.Future[list[Any]]:
        """The replies to `data`, `count` of them."""
        assert self._asked is None and self._transport is not None
        self._asked, self._count = asyncio.get_running_loop().create_future(), count
        self._transport.write(data)
        return self._asked

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._asked is None:
            return
        try:
            replies = parse_replies(self._buffer, self._count)
        except Exception as error:
            asked, self._asked = self._asked, None
            asked.set_exception(error)
            return
        if replies is not None:
            asked, self._asked, self._buffer = self._asked, None, b""
            if not asked.done():
                asked.set_result(replies)

    def connection_lost(self, error: Exception | None) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error or ConnectionError("the server hung up"))


class Pool:
    """At most `size` connections; who finds none free waits for one, first come, first served."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._left = url, size
        self._free: list[Wire] = []
        self._all: list[Wire] = []
        self._waiting: deque[asyncio.Future[Wire]] = deque()

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        wire = await self._take()
        try:
            yield wire
        finally:
            self._give(wire)

    async def play(self, trips: Sequence[Trip], values: Values) -> list[Any]:
        """The replies to each trip in turn, flat."""
        replies: list[Any] = []
        held: Wire | None = None
        for trip in trips:
            wire = held or await self._take()
            replies += await wire.ask(trip.render(time.time(), values), trip.replies)
            held = wire if trip.watches or (held and not trip.ends) else None
            if held is None:
                self._give(wire)
        if held is not None:
            self._give(held)
        return replies

    def close(self) -> None:
        for wire in self._all:
            wire.close()

    async def _take(self) -> Wire:
        if self._free:
            return self._free.pop()
        if self._left:
            self._left -= 1
            wire = await Wire.connect(self._url)
            self._all.append(wire)
            return wire
        waiting: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return await waiting

    def _give(self, wire: Wire) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(wire)
                return
        self._free.append(wire)
