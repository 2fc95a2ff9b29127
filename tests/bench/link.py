"""A fast connection for simulated boxes: redis-py needs five times the CPU time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

Argument = bytes | str | float


class Refused(Exception):
    """The server answered with an error."""


class Link(asyncio.Protocol):
    """One connection. Commands may be sent before earlier ones are answered."""

    def __init__(self) -> None:
        self._buffer = b""
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def connect(cls, url: str) -> Link:
        """`url`: redis://HOST:PORT/DB or unix://PATH?db=DB."""
        loop, parts = asyncio.get_running_loop(), urlsplit(url)
        if parts.scheme == "unix":
            _, link = await loop.create_unix_connection(cls, parts.path)
            database = parse_qs(parts.query).get("db", ["0"])[0]
        else:
            _, link = await loop.create_connection(cls, parts.hostname, parts.port)
            database = parts.path.strip("/") or "0"
        if database != "0":
            await link.ask("SELECT", database)
        return link

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """The reply to a command. Raises Refused if it is an error."""
        assert self._transport is not None
        parts = [b"*%d\r\n" % len(command)]
        for argument in command:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(reply)
        self._transport.write(b"".join(parts))
        return reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while self._asked and at < len(self._buffer):
            try:
                reply, at = _reply(self._buffer, at)
            except (IndexError, ValueError):  # incomplete
                break
            asked = self._asked.popleft()
            if asked.done():
                continue
            if isinstance(reply, Refused):
                asked.set_exception(reply)
            else:
                asked.set_result(reply)
        self._buffer = self._buffer[at:]

    def connection_lost(self, error: Exception | None) -> None:
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(error or ConnectionError("the server hung up"))


def _reply(data: bytes, at: int) -> tuple[Any, int]:
    """A reply in RESP 2, and where the next one begins. Raises IndexError or ValueError where it is not all there."""
    kind, end = data[at], data.index(b"\r\n", at)
    line, at = data[at + 1 : end], end + 2
    if kind == 0x2B:  # +
        return line, at
    if kind == 0x3A:  # :
        return int(line), at
    if kind == 0x2D:  # -
        return Refused(line.decode()), at
    size = int(line)
    if size < 0:
        return None, at
    if kind == 0x24:  # $
        if at + size + 2 > len(data):
            raise ValueError
        return data[at : at + size], at + size + 2
    items = []
    for _ in range(size):
        item, at = _reply(data, at)
        items.append(item)
    return items, at


def replaced(arguments: Sequence[Argument], values: dict[bytes, bytes]) -> list[bytes]:
    """The arguments with new values of the same lengths."""
    changed = []
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        for old, new in values.items():
            if old in data:
                data = data.replace(old, new)
        changed.append(data)
    return changed
