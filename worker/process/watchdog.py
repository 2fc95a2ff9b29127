"""Ends the process when a device call does not return: no code in the process can interrupt it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from ..engine.engine import Engine

EXIT_CODE = 3
"""The exit code of a process that its watchdog ended."""
_LOOKS = 4
"""Checks within the limit; there is at least one per second."""

_log = logging.getLogger("sailq.worker")


class Watchdog:
    """Ends the process when a device call takes longer than `limit` seconds, or the thread of the calls is gone.

    The leases of its jobs then expire, and other workers run them.
    """

    def __init__(
        self, engine: Engine, limit: float, alive: Callable[[], bool] = lambda: True,
        on_life: Callable[[], None] = lambda: None,
    ) -> None:
        """`alive`: whether the thread that makes the device's calls still runs. `on_life`: called after each check that
        finds nothing wrong."""
        self._engine, self._limit, self._alive, self._on_life = engine, limit, alive, on_life
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sailq-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit / _LOOKS)):
            call = self._engine.device_call
            if call is not None and time.monotonic() - call[1] > self._limit:
                _leave(f"{call[0]} on {self._engine.device} has not returned for {self._limit:g} s")
            if not self._alive():
                _leave("the scheduler's thread is gone")
            self._on_life()


def _leave(reason: str) -> None:
    """Ends the process at once: a thread may be in a device call that nothing can interrupt."""
    _log.critical("%s: this process exits; its jobs go to other workers, and a supervisor should restart it", reason)
    logging.shutdown()
    os._exit(EXIT_CODE)
