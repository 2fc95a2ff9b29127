"""Connects to the server, reads its clock, and turns its failures into sailq's errors."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import MasterDownError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from . import sentinel
from .errors import BadRequest, ServerUnavailable

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
"""The read timeout in seconds, longer than any command blocks on purpose. A broken link may go unnoticed for so
long."""
_RETRIES = 3
_CLOCK_SECONDS = 60.0
_OPTIONS = {
    "db", "username", "password", "sentinel_username", "sentinel_password", "client_name", "socket_timeout",
    "socket_connect_timeout", "socket_keepalive", "health_check_interval",
}
"""The options that a URL may have, besides those for TLS. Some of redis-py's others change the form of replies."""
_STATES: dict[type[redis.RedisError], str] = {
    redis.BusyLoadingError: "is still loading its data",
    redis.OutOfMemoryError: "is full: it accepts new data only after jobs end, data expire, or maxmemory is raised",
    redis.ReadOnlyError: "is a read-only replica: SAILQ_REDIS_URL must name the primary",
    MasterDownError: "is a replica that has lost its primary",
}
"""Errors of redis-py for a server state that passes by itself, with the words for it."""
OUTAGES = (redis.ConnectionError, redis.TimeoutError, *_STATES)
"""Errors after which a command may be retried. The server may or may not have executed it."""


def connect(url: str, *, max_connections: int | None = None, retries: int = _RETRIES) -> redis.Redis:
    """A client for a `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `rediss+sentinel://` URL; nothing is
    sent yet. With sentinels, the client connects to the current primary.

    `max_connections`: a thread waits for a free connection when so many are open. `retries`: how often a command is
    sent again after a connection broke, with a backoff of up to 2 s.

    Raises BadRequest for an invalid URL. The error does not quote the URL: in an invalid URL the password may be
    anywhere.
    """
    _check(url)
    options = connection_options(Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), retries))
    try:
        if by_sentinels(url):
            pool = sentinel.pool(url, max_connections=max_connections, **options)
        elif max_connections is None:
            pool = redis.ConnectionPool.from_url(url, **options)
        else:
            pool = redis.BlockingConnectionPool.from_url(
                url, max_connections=max_connections, timeout=None, **options
            )
        authority = pool.connection_kwargs.get("ssl_ca_certs")
        if authority and not Path(authority).is_file():
            raise BadRequest(f"ssl_ca_certs in the server's URL names {authority!r}, but there is no such file.")
        pool.connection_class(**pool.connection_kwargs)
    except ValueError as error:
        raise BadRequest(f"This server URL cannot be read: {str(error).rstrip('.')}.") from None
    except (TypeError, redis.RedisError):
        raise BadRequest("This server URL cannot be read: it has an option that redis-py does not know.") from None
    return redis.Redis.from_pool(pool)  # the client owns the pool, and closes it


def connection_options(retry: Any) -> dict[str, Any]:
    """redis-py's options for each connection, besides those of the URL. `retry`: from redis-py or from its asyncio."""
    return {
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": _ANSWER_SECONDS,
        "protocol": 2,  # the same replies from every server version
        "health_check_interval": 30,
        "retry": retry,
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }


def by_sentinels(url: str) -> bool:
    return url.partition("://")[0] in sentinel.SCHEMES


def _check(url: str) -> None:
    query = url.partition("?")[2]
    unknown = [name for name in parse_qs(query) if name not in _OPTIONS and not name.startswith("ssl_")]
    if unknown and "@" not in query:  # otherwise the ? is part of a password
        raise BadRequest(
            f"This server URL has an unknown option; the options are {', '.join(sorted(_OPTIONS))} and those "
            "that begin with ssl_."
        )
    if by_sentinels(url):
        return  # `sentinel.parse` checks it
    misread = (
        "This server URL cannot be read: its port must be a number, and a password must have /, ?, # and @ as "
        "%2F, %3F, %23 and %40."
    )
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsing raises if it is invalid
    except ValueError:
        raise BadRequest(misread) from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise BadRequest(
            "A server's URL must start with redis://, rediss:// or unix://, or with redis+sentinel:// or rediss+sentinel://."
        )
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise BadRequest(misread)


def without_password(url: str) -> str:
    """A URL for `connect`, with its passwords replaced by ***, so that it can be shown."""
    shown = re.sub(r"^([\w+]+://[^:/?#]*):[^/?#]*@", r"\1:***@", url)
    return re.sub(r"([?&](?:sentinel_)?password=)[^&]*", r"\1***", shown)


@contextmanager
def server_errors(connection: redis.Redis) -> Iterator[None]:
    """Turns redis-py's errors into ServerUnavailable with one readable sentence."""
    try:
        yield
    except tuple(_STATES) as error:
        raise ServerUnavailable(f"The server at {address(connection)} {_STATES[type(error)]}.") from error
    except redis.AuthenticationError as error:
        raise ServerUnavailable(f"The server at {address(connection)} refused the login: {_said(error)}.") from error
    except redis.TimeoutError as error:
        raise ServerUnavailable(f"The server at {address(connection)} did not answer in time.") from error
    except MasterNotFoundError as error:
        raise ServerUnavailable(
            f"None of the sentinels {_sentinels(connection)} names a primary "
            f"{connection.connection_pool.service_name!r} that is up: are they running, and is SAILQ_REDIS_URL right?"
        ) from error
    except redis.ConnectionError as error:
        if (reason := _tls_failure(error)) is not None:
            raise ServerUnavailable(f"TLS with the server at {address(connection)} failed: {reason}.") from error
        raise ServerUnavailable(
            f"No server answers at {address(connection)}: is it running, and is SAILQ_REDIS_URL right?"
        ) from error
    except redis.ResponseError as error:
        raise ServerUnavailable(f"The server at {address(connection)} refused a command: {_said(error)}.") from error


def _said(error: redis.RedisError) -> str:
    return str(error).rstrip(".")


def _tls_failure(error: BaseException | None) -> str | None:
    """The TLS library's message, if a TLS error caused redis-py's."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        return f"{said}; ssl_ca_certs in SAILQ_REDIS_URL must name the authority that signed it"
    return None if error is None else (error.reason or str(error)).lower().replace("_", " ")


def address(connection: redis.Redis) -> str:
    """The server's address, without secrets."""
    options = place(connection)
    if "path" in options:
        return str(options["path"])
    if "host" not in options and hasattr(connection.connection_pool, "sentinel_manager"):
        return f"{connection.connection_pool.service_name} of the sentinels {_sentinels(connection)}"
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def place(connection: redis.Redis) -> dict[str, Any]:
    """redis-py's options of a connection. With sentinels, `host` and `port` are those of the last primary."""
    pool = connection.connection_pool
    options: dict[str, Any] = pool.connection_kwargs
    primary = getattr(pool, "master_address", None)
    return options if primary is None else {**options, "host": primary[0], "port": primary[1]}


def _sentinels(connection: redis.Redis) -> str:
    sentinels = connection.connection_pool.sentinel_manager.sentinels
    return ", ".join(sorted(map(address, sentinels)))


class ServerClock:
    """The server's time, so that machines with different clocks agree on deadlines and waits.

    One TIME command reads the offset, accurate to half its round trip, and again after `_CLOCK_SECONDS`. The offset is
    to the monotonic clock: the date of a box without a battery is wrong at boot and corrected while the worker runs.
    """

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._offset: float | None = None
        self._read_at = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        if self._offset is None or time.monotonic() - self._read_at >= _CLOCK_SECONDS:
            before = time.monotonic()
            try:
                seconds, microseconds = self._connection.time()
            except redis.RedisError:
                if self._offset is None:
                    raise
                return time.monotonic() + self._offset
            self._read_at = time.monotonic()
            self._offset = seconds + microseconds / 1e6 - (before + self._read_at) / 2
        return time.monotonic() + self._offset
