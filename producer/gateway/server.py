"""Runs the gateway with uvicorn."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sailq.shared.errors import BadRequest

from .page.page import Page

_HEADER_SECONDS = 30.0
"""Seconds in which a client must send the head of a request."""
DRAIN_SECONDS = 30
"""Seconds that answers under way get when the gateway stops."""
_MOST_FILES = 1 << 16


class _Protocol(H11Protocol):
    """Closes a connection on which no request begins in time, not even a byte at a time. uvicorn waits for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._late.cancel()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._late = asyncio.get_running_loop().call_later(_HEADER_SECONDS, self._close_if_quiet)

    def _close_if_quiet(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises BadRequest if it cannot be bound."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except OSError as error:
        raise BadRequest(f"The gateway cannot listen on port {port} of {host}: {error.strerror}.") from None


def serve(app: FastAPI, listening: socket.socket, certificate: Path | None, key: Path | None) -> None:
    """Serves until SIGTERM or SIGINT. Raises BadRequest for a certificate that cannot be used."""
    _allow_many_connections()
    server_of(app, certificate, key).run(sockets=[listening])


def server_of(app: FastAPI, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Server:
    """A server that has not begun. When it stops, requests under way get `DRAIN_SECONDS`; then their jobs are
    cancelled."""
    config = uvicorn.Config(
        app, http=_Protocol, ws="none", lifespan="on", log_config=None, server_header=False,
        ssl_certfile=certificate, ssl_keyfile=key, timeout_keep_alive=int(_HEADER_SECONDS),
        timeout_graceful_shutdown=DRAIN_SECONDS, loop="uvloop",
    )
    try:
        config.load()
    except OSError as error:
        raise BadRequest(f"The certificate {certificate} cannot be used: {error.strerror or error}.") from None
    page: Page | None = app.state.page
    return _Server(config, page)


class _Server(uvicorn.Server):
    """Ends the streams of open pages when it stops: it waits for all responses to end."""

    def __init__(self, config: uvicorn.Config, page: Page | None) -> None:
        super().__init__(config)
        self._page = page

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._page is not None:
            self._page.live.end()
        await super().shutdown(sockets)


def _allow_many_connections() -> None:
    """Raises the limit of open files, of which each connection is one, as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
