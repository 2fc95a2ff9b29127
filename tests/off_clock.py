"""A server with a wrong clock."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_TIME = b"*1\r\n$4\r\nTIME\r\n"


class OffClock:
    """Stands before a server on a Unix socket, until its `with` block ends, and adds `seconds` to what TIME gives."""

    def __init__(self, server: str, path: Path, seconds: int) -> None:
        self.url, self.seconds = f"unix://{path}", seconds
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        """Nobody sends a command before the reply to the one before it. A long command comes in pieces."""
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._server)
            command = b""
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    command = client.recv(1 << 16)
                    if not command:
                        return
                    server.sendall(command)
                    continue
                reply = server.recv(1 << 16)
                if reply and command == _TIME:
                    _, _, seconds, _, microseconds = reply.split(b"\r\n")[:5]
                    seconds = str(int(seconds) + self.seconds).encode()
                    reply = b"*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
                        len(seconds), seconds, len(microseconds), microseconds
                    )
                client.sendall(reply)

    def __enter__(self) -> OffClock:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
