"""A proxy before a server, by which a test breaks the connections to it."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path


class Proxy:
    """Stands before a server on a Unix socket.

    Attributes:
        lose_reply: once set, the next connection that gets the reply to `command` is closed instead.
    """

    def __init__(self, server: str, path: Path, command: bytes = b"EXEC") -> None:
        self._command = command
        self.lose_reply = threading.Event()
        self._server, self._path = server, path
        self._open: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._listen()

    def cut(self) -> None:
        """As a cable that is pulled: nobody connects, and what is connected hears nothing, not even an end."""
        self._flows.clear()
        self._listener.close()
        self._path.unlink()

    def mend(self, *, forget: bool) -> None:
        """The cable is back. What was connected goes on, or is forgotten (as by a router): it stays silent for ever."""
        if forget:
            self._flows = threading.Event()
        self._flows.set()
        self._listen()

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client, self._flows), daemon=True).start()

    def _carry(self, client: socket.socket, flows: threading.Event) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        self._open += [client, server]
        with client, server:
            while True:
                readable, _, _ = select.select([client, server], [], [])
                flows.wait()
                for one in readable:
                    try:
                        data = one.recv(1 << 16)
                    except OSError:
                        return
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
                    if one is client and self._command in data and self.lose_reply.is_set():
                        server.recv(1 << 16)  # the server has done it
                        self.lose_reply.clear()
                        return
