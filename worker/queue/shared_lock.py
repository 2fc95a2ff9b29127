"""A lock that many hold together, or one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Whoever waits to be alone goes before those who come later, so that its turn comes."""

    def __init__(self) -> None:
        self._holders = 0
        self._loners = 0  # the one that holds it alone, and those that wait to
        self._changed = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._loners)
            self._holders += 1
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._loners += 1
            self._changed.wait_for(lambda: not self._holders)
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._loners -= 1
            self._release()

    def _release(self) -> None:
        with self._changed:
            self._holders -= 1
            self._changed.notify_all()
