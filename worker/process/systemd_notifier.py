"""Tells systemd what a worker is doing, when it takes jobs, and that it is alive.

The protocol is sd_notify(3): datagrams to the socket in NOTIFY_SOCKET. Without that variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

BEAT_LIMIT = 300.0
"""Seconds without a beat after which systemd may end the worker. An outage of the server can delay a beat by a minute
or two, until the connection gives up: that alone must not end a worker."""


class SystemdNotifier:
    """Sends a worker's state to systemd. Its methods may be called from any thread. They never block or raise."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._beat = time.monotonic()

    def status(self, text: str) -> None:
        """Sets the line that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def ready(self) -> None:
        """Reports that the worker takes jobs from now on."""
        self._send("READY=1")

    def beat(self, running: int, slots: int) -> None:
        """Notes a beat, and reports how many slots are in use."""
        self._beat = time.monotonic()
        self.status(f"{running} of {slots} slots")

    def alive(self) -> None:
        """Resets systemd's watchdog, unless the last beat is older than `BEAT_LIMIT`."""
        if time.monotonic() - self._beat < BEAT_LIMIT:
            self._send("WATCHDOG=1")

    def _send(self, said: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a service manager that does not read must not block a worker
            sender.sendto(said.encode(), self._address)
