"""What the commands print, and how they end: an error becomes a sentence or JSON, and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from .errors import SailqError
from .main import FAILURE as FAILURE
from .main import INTERRUPTED, exit_code, interrupt

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 1000


class OutputLost(SailqError):
    """stdout cannot be written: the disk is full, or nobody reads the pipe."""


@contextmanager
def command(as_json: bool = False) -> Iterator[None]:
    """Wraps the body of every command: turns errors into one line (or JSON on stdout) and an exit code.

    SIGTERM and SIGHUP (the terminal closed) act like Ctrl-C, so that jobs and processes are cleaned up. `nohup` works.
    Hides Pillow's warnings about odd images.
    """
    warnings.filterwarnings("ignore", module="PIL")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    except SailqError as error:
        if not as_json or isinstance(error, OutputLost):
            raise  # the `sailq` script prints the error
        print_json({"error": {"code": error.code, "message": str(error)}})
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            print("\nsailq: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note(text: str) -> None:
    """Prints a line for the user to stderr, dim on a terminal. Does nothing if stderr is closed."""
    with suppress(OSError):
        print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Prints a value on one line of stdout. Escapes characters that stdout cannot encode. Raises OutputLost."""
    _say(as_line(value, sys.stdout.encoding or "utf-8") + "\n")


def console() -> Console:
    """A console for stdout that prints brackets unchanged and, when piped, does not wrap lines."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def as_line(value: Any, encoding: str = "utf-8") -> str:
    """JSON on one line. Characters that `encoding` does not have are escaped: file names need not be Unicode, and a
    terminal may be ASCII."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def _say(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):  # the rest of the buffer must not fail again when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputLost("Nobody reads the output any more: the pipe is closed.") from None
        raise OutputLost(f"The output cannot be written: {error.strerror}.") from None


class AnswerPrinter:
    """Prints an answer to stdout as it comes. On a terminal, the thought before it is shown dimmed."""

    def __init__(self) -> None:
        self._in_thought = False

    def thought(self, piece: str) -> None:
        if sys.stdout.isatty():
            _say(f"\x1b[2m{piece}\x1b[0m")
            self._in_thought = True

    def text(self, piece: str) -> None:
        if self._in_thought:
            _say("\n\n")
            self._in_thought = False
        _say(piece)
