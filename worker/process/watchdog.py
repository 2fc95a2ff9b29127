"""A device call that does not return is the end of the process: nothing in it can interrupt the device."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from ..engine import Engine

EXIT_CODE = 3
"""Of a process that its watchdog ended."""
_LOOKS = 4
"""How often it looks within the limit, and at least once a second."""

_log = logging.getLogger("sailq.worker")


class Watchdog:
    """Ends the process when a call to the engine's device takes longer than `limit` seconds, or what makes the calls
    is gone. Its jobs' leases end with it, and other workers take them."""

    def __init__(
        self, engine: Engine, limit: float, alive: Callable[[], bool] = lambda: True,
        on_life: Callable[[], None] = lambda: None,
    ) -> None:
        """`alive`: whether the thread that makes the device's calls still does. `on_life` is called at each look that
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
    """At once: threads may be in a device call that nothing can interrupt."""
    _log.critical("%s: leaving; a supervisor starts this worker again, and its jobs go to others", reason)
    logging.shutdown()
    os._exit(EXIT_CODE)
