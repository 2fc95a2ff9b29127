"""What systemd hears of a worker that it started: what it is doing, when it takes jobs, and that it lives.

The protocol is sd_notify(3)'s: datagrams to the socket that NOTIFY_SOCKET names. Without one nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

BEAT_LIMIT = 300.0
"""Seconds without a beat after which a worker is no longer called alive. A server that does not answer holds a beat up
for as long as it takes to give up on it, a minute or two: that alone must not end a worker."""


class SystemdNotifier:
    """Its methods may be called from any thread; none waits, and none raises."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._beat = time.monotonic()

    def status(self, text: str) -> None:
        """One line, which `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def ready(self) -> None:
        """The worker takes jobs from now on."""
        self._send("READY=1")

    def beat(self, running: int, slots: int) -> None:
        """The beat thread lives, and so many slots are in use."""
        self._beat = time.monotonic()
        self.status(f"{running} of {slots} slots")

    def alive(self) -> None:
        """Keeps systemd from ending the worker for another WatchdogSec, unless its beats have ceased."""
        if time.monotonic() - self._beat < BEAT_LIMIT:
            self._send("WATCHDOG=1")

    def _send(self, said: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not hold up a worker
            sender.sendto(said.encode(), self._address)
