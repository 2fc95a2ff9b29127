"""Connecting to the server, its clock, and its failures as sailq's own errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from .errors import BadRequest, ServerUnavailable

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
"""Longer than any command blocks on purpose."""
_RETRIES = 3
_CLOCK_SECONDS = 60.0


def connect(url: str, *, max_connections: int | None = None, retries: int = _RETRIES) -> redis.Redis:
    """A client for a `redis://`, `rediss://` or `unix://` URL; nothing is sent yet.

    With `max_connections` a thread waits for a free connection instead of opening one more. A command that
    meets a broken connection is sent again, `retries` times, backing off up to 2 s.
    """
    if urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
        shown = without_password(url)
        raise BadRequest(f"A server's URL starts with redis://, rediss:// or unix://, unlike {shown!r}.")
    options: dict[str, object] = {
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": _ANSWER_SECONDS,
        "protocol": 2,  # the same replies from every server version
        "health_check_interval": 30,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), retries),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }
    try:
        if max_connections is None:
            pool = redis.ConnectionPool.from_url(url, **options)
        else:
            pool = redis.BlockingConnectionPool.from_url(
                url, max_connections=max_connections, timeout=None, **options
            )
    except ValueError as error:
        raise BadRequest(f"This server URL cannot be read: {error}.") from None
    return redis.Redis.from_pool(pool)  # it owns the pool: `close` closes all of it


def without_password(url: str) -> str:
    """`url` as it may be shown: its password, if any, replaced by ***."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")).geturl()


@contextmanager
def server_errors(connection: redis.Redis) -> Iterator[None]:
    """Turns redis-py's errors into ServerUnavailable with one readable sentence."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise ServerUnavailable(f"The server at {address(connection)} refused the login: {error}.") from error
    except redis.TimeoutError as error:
        raise ServerUnavailable(f"The server at {address(connection)} did not answer in time.") from error
    except redis.ConnectionError as error:
        raise ServerUnavailable(
            f"No server answers at {address(connection)}: is it running, and is SAILQ_REDIS_URL right?"
        ) from error
    except redis.ResponseError as error:
        raise ServerUnavailable(f"The server at {address(connection)} refused a command: {error}.") from error


def address(connection: redis.Redis) -> str:
    """Where `connection` leads, without secrets."""
    options = connection.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


class ServerClock:
    """The server's time, so that boxes whose own clocks differ agree on deadlines and waits.

    The offset is read by one TIME command, right to half its round trip, and again after `_CLOCK_SECONDS`: a
    box without a battery for its clock starts at some date, which is set right while the worker runs.
    """

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._offset: float | None = None
        self._read_at = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        if self._offset is None or time.monotonic() - self._read_at >= _CLOCK_SECONDS:
            before = time.time()
            try:
                seconds, microseconds = self._connection.time()
            except redis.RedisError:
                if self._offset is None:
                    raise
                return time.time() + self._offset
            self._offset = seconds + microseconds / 1e6 - (before + time.time()) / 2
            self._read_at = time.monotonic()
        return time.time() + self._offset
