"""A proxy before a server, by which a test breaks the connections to it."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
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
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self._forgotten: list[threading.Event] = []
        self._listen()

    def cut(self) -> None:
        """Simulates a pulled cable: no new connections, and existing ones are silent, without an end."""
        self._flows.clear()
        self._stop_listening()
        self._path.unlink()

    def restore(self, *, forget: bool) -> None:
        """Plugs the cable in again. Existing connections continue, or stay silent if a router forgot them."""
        if forget:
            self._forgotten.append(self._flows)
            self._flows = threading.Event()
        self._flows.set()
        self._listen()

    def close(self) -> None:
        """Ends every connection, and returns when all threads have ended."""
        self._stop_listening()
        for one in self._open:
            _shut(one)
        for flows in (self._flows, *self._forgotten):
            flows.set()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._start(self._accept, self._listener)

    def _stop_listening(self) -> None:
        _shut(self._listener)  # wakes up the thread in accept(), which closes it

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                self._open.append(client)
                self._start(self._carry, client, self._flows)

    def _carry(self, client: socket.socket, flows: threading.Event) -> None:
        """Carries bytes both ways until an end is shut. Only this thread closes the two sockets."""
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            self._open.append(server)
            server.connect(self._server)
            while True:
                readable, _, _ = select.select([client, server], [], [])
                flows.wait()
                for one in readable:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
                    if one is client and self._command in data and self.lose_reply.is_set():
                        server.recv(1 << 16)  # the server has executed the command
                        self.lose_reply.clear()
                        return


def _shut(one: socket.socket) -> None:
    with suppress(OSError):  # its other end may have gone
        one.shutdown(socket.SHUT_RDWR)
