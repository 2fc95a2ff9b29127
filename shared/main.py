"""The `sailq` command. It finds its subcommands through the entry point group `sailq.commands`.

So producer and worker do not import each other, and only the subcommand that runs is imported: `sailq ask` starts fast.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from types import FrameType
from typing import TYPE_CHECKING

from .errors import BadRequest, SailqError, Unsupported

if TYPE_CHECKING:
    import typer

GROUP = "sailq.commands"
FAILURE = 1
INTERRUPTED = 130
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF}
"""The errors of a full disk, and of a closed stdout (see `_open_standard_streams`)."""
USAGE_ERROR = 2
"""Exit code for a usage error; every other failure is 1."""
_interrupts: list[int] = []
"""The signals that `interrupt` has received."""


def exit_code(error: SailqError) -> int:
    """The exit code for an error."""
    return USAGE_ERROR if isinstance(error, BadRequest | Unsupported) else FAILURE


def application(asked: str = "") -> typer.Typer:
    """The command with only its subcommand `asked`, or with all subcommands if no subcommand has that name."""
    import typer  # takes long, and Ctrl-C may interrupt it

    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(help="Vision-language models as an asynchronous service on Redis.")(lambda: None)
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in [asked] if asked in commands else sorted(commands):
        command = commands[name].load()
        if isinstance(command, typer.Typer):  # a group of subcommands
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `sailq` script. Runs `arguments` (default: this process's) and raises SystemExit."""
    _open_standard_streams()
    _escape_what_cannot_be_shown()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, and not replaced by other code
        signal.signal(signal.SIGINT, interrupt)
    try:
        application(words[0] if words else "")(args=words, prog_name="sailq")
    except SailqError as error:
        print(f"sailq: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"sailq: {error.filename or 'The output'} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(FAILURE)
    except SystemExit:
        raise
    except BaseException:
        if not _interrupts:
            raise
        print("\nsailq: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt. It also notes the interrupt for `main`, because an extension
    module that is being imported raises ImportError instead."""
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _open_standard_streams() -> None:
    """Opens standard streams that the caller has closed. Otherwise a file or a socket would get their numbers.

    The opened stdin is empty, the opened stderr discards its output, and writing to the opened stdout fails.
    """
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free descriptor, which is this one
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, mode, closefd=False), encoding="utf-8", write_through=True)


def _escape_what_cannot_be_shown() -> None:
    """Makes an ASCII stdout print other characters as escapes, and says so on stderr."""

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        if not told:
            told.append(print("sailq: This terminal shows ASCII only; other characters are escaped.", file=sys.stderr))
        return codecs.backslashreplace_errors(error)

    told: list[None] = []
    codecs.register_error("sailq-escape", escape)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="sailq-escape")
