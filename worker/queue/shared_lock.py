"""A lock that many threads share, or one holds alone: a readers-writer lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """A readers-writer lock. A thread that waits for `alone` goes before later ones that ask for `shared`."""

    def __init__(self) -> None:
        self._holders = 0
        self._loners = 0  # number of exclusive holders and waiters
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
