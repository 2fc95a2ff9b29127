"""Middleware: counts requests, ends them when the gateway stops, checks their host, and limits their bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..openai_api.errors import ApiError, unavailable
from .addresses import is_local
from .keys import Caller
from .metrics import Metrics

_QUIET_SECONDS = 30.0
"""The longest pause between two parts of a body."""
_END_SECONDS = 10.0
"""Seconds that cancelled requests have to end."""
_SECONDS = 600.0
"""A body must be complete after so many seconds."""


class Counted:
    """Middleware that counts each request when its response has ended."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # nginx's status for a client that has gone

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.open.track_inprogress():
            try:
                await self._app(scope, receive, sent)
            except Exception:
                status = 500  # what the server sends
                raise
            finally:
                caller: Caller | None = scope.get("state", {}).get("caller")
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.answered(caller.name if caller else "", path, status, time.monotonic() - began)


class Stopping:
    """Middleware for what uvicorn cancels when it stops: requests whose answers take too long and, after a second
    Ctrl-C, everything. A response that has not begun becomes 503, and one that has begun ends early. Then the
    application shuts down, as it does otherwise: a request that ends may still cancel its job."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, partial(self._shutdown, receive), send)
            return
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:
            if not begun:
                await _refuse(unavailable("The gateway stops.", "server_unavailable"), scope, receive, send)
        finally:
            self._requests.discard(task)

    async def _shutdown(self, receive: Receive) -> Message:
        """The next message to the application. Before the one that it is to shut down, all requests end."""
        try:
            message = await receive()
        except asyncio.CancelledError:
            message = {"type": "lifespan.shutdown"}
        if message["type"] == "lifespan.shutdown" and self._requests:
            await asyncio.wait(self._requests, timeout=_END_SECONDS)
        return message


class LocalHosts:
    """Middleware that refuses requests with a foreign `Host`. Without keys, a web page whose name resolves to this
    machine could otherwise use the gateway from a browser."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_local(_host(scope)):
            error = ApiError(403, "Without keys, the gateway answers only to its local names.", code="forbidden_host")
            await _refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


def _host(scope: Scope) -> str:
    """The host that a request names, without its port."""
    named: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return named.partition("]")[0] if named.startswith("[") else named.partition(":")[0]


class BodyLimits:
    """Middleware that makes reading a body raise ApiError: 413 if it is too large, 408 if it comes too slowly.

    Args:
        limit: the most bytes of the body of a request to this path.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[str], int]) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if b"content-length" in headers and b"transfer-encoding" in headers:
                # A proxy may see the end of this body at another place, and the next request in it (RFC 9112, 6.1).
                error = ApiError(400, "A request has a Content-Length or a Transfer-Encoding, not both.",
                                 code="invalid_request", headers={"Connection": "close"})
                await _refuse(error, scope, receive, send)
                return
            receive = _Body(receive, self._limit(scope["path"]), headers.get(b"content-length")).receive
        await self._app(scope, receive, send)


class _Body:
    def __init__(self, receive: Receive, limit: int, length: bytes | None) -> None:
        self._receive, self._limit = receive, limit
        self._read, self._complete = 0, False
        self._stated = int(length) if length is not None and length.isdigit() else 0
        self._until = time.monotonic() + _SECONDS

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._stated > self._limit:
            raise _too_large(self._limit)
        left = min(_QUIET_SECONDS, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except asyncio.TimeoutError:
            raise ApiError(408, "The body of the request did not arrive in time.", code="timeout") from None
        self._read += len(message.get("body", b""))
        if self._read > self._limit:
            raise _too_large(self._limit)
        self._complete = not message.get("more_body", False)
        return message


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit >> 20} MiB.", code="request_too_large",
                    headers={"Connection": "close"})
