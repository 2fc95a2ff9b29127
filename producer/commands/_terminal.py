"""What the commands print: errors as a sentence or as JSON, timings, and a note if no worker will answer."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from sailq.shared.errors import SailqError
from sailq.shared.main import FAILURE as FAILURE
from sailq.shared.main import INTERRUPTED, exit_code, interrupt

if TYPE_CHECKING:
    from sailq.shared.jobs import Result

    from ..client import Client


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
    from ..captioning.rows import as_line

    _say(as_line(value, sys.stdout.encoding or "utf-8") + "\n")


def _say(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):  # the rest of the buffer must not fail again when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputLost("Nobody reads the output any more: the pipe is closed.") from None
        raise OutputLost(f"The output cannot be written: {error.strerror}.") from None


def timings(result: Result) -> str:
    """A line with time to first token, tokens/s and total time."""
    said = []
    if result.timings.time_to_first_token is not None:
        said.append(f"first token after {result.timings.time_to_first_token:.2f} s")
    if result.tokens_per_second is not None:
        said.append(f"{result.tokens_per_second:.0f} tokens/s")
    said.append(f"{result.usage.completion_tokens} tokens")
    if result.timings.end_to_end is not None:
        said.append(f"{result.timings.end_to_end:.2f} s in all")
    return ", ".join(said)


def check_served(client: Client, model: str) -> None:
    """Prints a note if no worker serves `model` yet. Raises Unsupported if all workers serve other models."""
    from sailq.shared.errors import Unsupported

    from ..fleet import Fleet

    workers = Fleet(client.connection).workers()
    served = sorted({name for worker in workers for name in worker.names})
    if model in served:
        return
    if served and client.card(model) is None:
        raise Unsupported(f"No worker has ever served {model!r}; workers now serve {', '.join(served)}.")
    note(f"no worker serves {model} yet; waiting")


def print_piece(text: str) -> None:
    """Prints a piece of an answer as it comes."""
    _say(text)
