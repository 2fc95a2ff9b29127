"""`redis+sentinel://` URLs: connections to the server that the sentinels name as the primary.

A connection asks the sentinels each time that it is opened. A connection to a server that became a replica is closed
and opened again to the new primary. A command that is retried goes there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import BlockingConnectionPool, ConnectionPool, SSLConnection
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError, MasterDownError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection

from .errors import BadRequest

SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_SECONDS = 1.0
"""Seconds that one sentinel may take to connect, and to answer, before the next is asked."""
_PORT = 26_379
_FORM = "redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379/NAME/0"


@dataclass(frozen=True)
class Sentinels:
    """The parts of a URL.

    Attributes:
        hosts: (host, port) of each sentinel.
        name: the sentinels' name for the primary.
        server: redis-py's options of a connection to the primary, TLS and its class aside.
        sentinel: the same for a sentinel.
        tls: whether both connections use TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    name: str
    server: dict[str, Any]
    sentinel: dict[str, Any]
    tls: bool

    def options(self, retry: Any) -> dict[str, Any]:
        """redis-py's options of a connection to a sentinel. `retry`: redis-py's, or its asyncio's."""
        return {
            "socket_connect_timeout": SENTINEL_SECONDS, "socket_timeout": SENTINEL_SECONDS, "protocol": 2,
            "retry": retry, "ssl": self.tls, **self.sentinel,
        }


def parse(url: str) -> Sentinels:
    """Parses a URL. Raises BadRequest, or redis-py's ValueError for an option. Neither quotes text that may be a
    password."""
    scheme, _, rest = url.partition("://")
    credentials, _, place = rest.rpartition("@")
    where, _, query = place.partition("?")
    hosts, *path = where.split("/")
    name, database = unquote(path[0]) if path else "", path[1] if len(path) > 1 else "0"
    if not (hosts and name and re.fullmatch("[0-9]+", database)) or len(path) > 2 or set("@/?#") & set(credentials):
        raise BadRequest(
            f"A URL of sentinels must have the form {_FORM}; in a password, write /, ?, # and @ as %2F, %3F, %23 "
            "and %40."
        )
    options = parse_url(f"redis://host/{database}?{query}")
    options.pop("host")
    username, _, password = map(unquote, credentials.partition(":"))
    options.update({key: value for key, value in (("username", username), ("password", password)) if value})
    tls = scheme == "rediss+sentinel"
    shared = {key: value for key, value in options.items() if key.startswith("ssl_")}
    login = {key.removeprefix("sentinel_"): options.pop(key) for key in ("sentinel_username", "sentinel_password")
             if key in options}
    if shared and not tls:
        raise BadRequest("This server URL has ssl options, but only rediss+sentinel:// uses TLS.")
    return Sentinels(tuple(map(_address, hosts.split(","))), name, options, {**shared, **login}, tls)


def _address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise BadRequest(f"A URL of sentinels must have the form {_FORM}, and each port must be a number.")
    return host, port or _PORT


def pool(url: str, *, max_connections: int | None, **options: Any) -> SentinelConnectionPool:
    """Connections to the primary; nothing is sent yet. `options`: redis-py's of a connection. Raises as `parse`."""
    sentinels = parse(url)
    manager = Sentinel(
        sentinels.hosts,
        sentinel_kwargs=sentinels.options(Retry(NoBackoff(), 0)),
    )
    options = {**options, **sentinels.server, "connection_class": _SSLLink if sentinels.tls else _Link}
    if max_connections is None:
        return PrimaryPool(sentinels.name, manager, **options)
    return BlockingPrimaryPool(sentinels.name, manager, max_connections=max_connections, timeout=None, **options)


class _Link(SentinelManagedConnection):  # type: ignore[misc]
    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except MasterDownError:  # redis-py does the same for READONLY
            self.disconnect()
            raise ConnectionError("The server is a replica that has lost its primary.") from None


class _SSLLink(_Link, SSLConnection):  # type: ignore[misc]
    pass


class PrimaryPool(SentinelConnectionPool):  # type: ignore[misc]
    """redis-py's pool with two changes: it closes and reuses a connection from before a failover, and closing it also
    closes the sentinels' connections."""

    def owns_connection(self, connection: SentinelManagedConnection) -> bool:
        return bool(ConnectionPool.owns_connection(self, connection))

    def release(self, connection: SentinelManagedConnection) -> None:
        if (connection.host, connection.port) != self.master_address:
            connection.disconnect()
        super().release(connection)

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


class BlockingPrimaryPool(PrimaryPool, BlockingConnectionPool):  # type: ignore[misc]
    """A `PrimaryPool` in which a thread waits for a free connection."""
