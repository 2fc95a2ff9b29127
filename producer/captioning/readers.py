"""Reads clips in child processes. A decoder that crashes fails one clip only, and up to `READERS` cores decode.

A child is started when it is first needed and reads one clip at a time. It ends when its pipe closes, even if its
parent crashed. Ctrl-C reaches only the parent.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import cv2

from sailq.shared.errors import BadMedia, SailqError
from sailq.shared.media.messages import Prepared, prepare

READERS = min(4, os.cpu_count() or 1)
"""The most clips that are read at a time."""
MAX_MEMORY = 4 * 1024**3
"""Address space of a child, in bytes."""
MAX_SECONDS = 600.0
"""Seconds of processor time of a child for one clip, by default. It ends a decoder that hangs where `media.limits` is
not checked."""


class Readers:
    """Reads clips in children. Safe to use from several threads, each of which waits for its clip."""

    def __init__(self, count: int = READERS, max_seconds: float = MAX_SECONDS) -> None:
        """`max_seconds`: seconds of processor time of a child for one clip."""
        self._max_seconds = max_seconds
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # last in, first out: a started child first
        self._children: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def prepare(self, messages: Any, **options: Any) -> Prepared:
        """Runs `messages.prepare` in a child. Raises what it raises, and BadMedia if the child died."""
        child = self._idle.get()
        try:
            child = child or self._start()
            answer = child.ask((messages, options))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            assert child is not None
            code = child.end()
            with self._lock:
                self._children.discard(child)
            child = None
            raise BadMedia(self._cause(code)) from None
        finally:
            self._idle.put(child)
        if isinstance(answer, SailqError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the children; clips that are being read end with an error."""
        with self._lock:
            self._closed = True
            children, self._children = self._children, set()
        for child in children:
            child.kill()

    def _start(self) -> _Child:
        with self._lock:
            if self._closed:
                raise SailqError("The batch has ended.")
            child = _Child(self._max_seconds)
            self._children.add(child)
            return child

    def _cause(self, code: int) -> str:
        if code == -signal.SIGPROF:
            return f"Reading this clip takes more than {self._max_seconds:g} s of processor time."
        died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"The process that read this clip died ({died})."


class _Child:
    def __init__(self, max_seconds: float) -> None:
        self._pipe, other = Pipe()
        call = f"from {__name__} import serve; serve({other.fileno()}, {max_seconds})"
        code = f"import sys; sys.path[:] = {sys.path!r}; {call}"
        # The child has its own session, so Ctrl-C in the terminal reaches only the parent.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        other.close()

    def ask(self, request: Any) -> Prepared | SailqError:
        self._pipe.send(request)
        answer: Prepared | SailqError = self._pipe.recv()
        return answer

    def end(self) -> int:
        """Waits for a child whose pipe has closed. Returns its exit code, or minus the signal that ended it."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(10)
        return self.kill()

    def kill(self) -> int:
        self._process.kill()
        return self._process.wait()


def serve(fileno: int, max_seconds: float) -> None:
    """Runs a child: it reads requests from the pipe `fileno` and writes answers to it."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # it warns of many pixels and odd metadata: harmless
    pipe: Connection[Any, Any] = Connection(fileno)
    with suppress(EOFError, OSError):
        while True:
            messages, options = pipe.recv()
            signal.setitimer(signal.ITIMER_PROF, max_seconds)
            answer = _answer(messages, options)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(answer)


def _answer(messages: Any, options: dict[str, Any]) -> Prepared | SailqError:
    try:
        return prepare(messages, **options)
    except SailqError as error:
        return error
    except MemoryError:
        return BadMedia(f"Reading this clip takes more than {MAX_MEMORY // 2**30} GiB of memory.")
    except Exception as error:  # any error fails this clip only
        return SailqError(f"This clip cannot be read: {type(error).__name__}: {error}.")
