"""Server-sent events, and requests that end when their client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..openai_api.errors import ApiError

T = TypeVar("T")
Chunks = AsyncGenerator[dict[str, Any], None]

_QUIET_SECONDS = 10.0
"""Seconds without a chunk after which the response begins, or a comment is sent: proxies end quiet connections."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
]


class Disconnected(Exception):
    """The client has closed its connection."""


async def until_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects. Raises Disconnected."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """A response of server-sent events, each of which is a chunk in JSON. It ends with `[DONE]`."""

    def __init__(self, pending: asyncio.Future[dict[str, Any] | None], chunks: Chunks) -> None:
        super().__init__()
        self._pending, self._chunks = pending, chunks

    @classmethod
    async def begun(cls, request: Request, chunks: Chunks) -> EventStream:
        """A response whose first chunk has come, or is late. Raises ApiError if the answer failed before, so that the
        response has the error's status, and Disconnected."""
        pending = asyncio.ensure_future(anext(chunks, None))
        gone = asyncio.ensure_future(_disconnect(request.receive))
        try:
            await asyncio.wait({pending, gone}, timeout=_QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise Disconnected
            if pending.done():
                pending.result()
            return cls(pending, chunks)
        except BaseException:
            await _end(pending)
            await chunks.aclose()
            raise
        finally:
            await _end(gone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _end(sending, gone, self._pending)
            await self._chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        while True:
            await asyncio.wait({self._pending}, timeout=_QUIET_SECONDS)
            if not self._pending.done():
                await self._say(send, ": waiting\n\n")
                continue
            try:
                chunk = self._pending.result()
            except ApiError as error:
                chunk = error.body
            if chunk is not None:
                await self._say(send, f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
            if chunk is None or "error" in chunk:
                break
            self._pending = asyncio.ensure_future(anext(self._chunks, None))
        await self._say(send, "data: [DONE]\n\n", last=True)

    @staticmethod
    async def _say(send: Send, text: str, last: bool = False) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
