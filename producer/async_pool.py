"""The asyncio client's connection pool, for a server's URL or a URL of sentinels."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError, MasterDownError

from sailq.shared.connection import by_sentinels, connection_options
from sailq.shared.sentinel import parse


def connection_pool(url: str, max_connections: int) -> ConnectionPool:
    """A pool for a URL as `shared.connection.connect` takes it. A caller waits if no connection is free."""
    options = connection_options(Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), 3))
    if not by_sentinels(url):
        return BlockingConnectionPool.from_url(url, max_connections=max_connections, timeout=None, **options)
    sentinels = parse(url)
    manager = Sentinel(
        sentinels.hosts,
        sentinel_kwargs=sentinels.options(Retry(NoBackoff(), 0)),
    )
    options = {**options, **sentinels.server, "connection_class": _SSLLink if sentinels.tls else _Link}
    return _PrimaryPool(sentinels.name, manager, max_connections=max_connections, timeout=None, **options)


class _Link(SentinelManagedConnection):  # type: ignore[misc]
    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except MasterDownError:  # redis-py does the same for READONLY
            await self.disconnect()
            raise ConnectionError("The server is a replica that has lost its primary.") from None


class _SSLLink(_Link, SSLConnection):  # type: ignore[misc]
    pass


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):  # type: ignore[misc]
    async def release(self, connection: SentinelManagedConnection) -> None:
        if (connection.host, connection.port) != self.master_address:
            await connection.disconnect()  # it is connected to the former primary
        await super().release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()
