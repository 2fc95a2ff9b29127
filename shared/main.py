"""The `sailq` command: its subcommands are found through the entry point group `sailq.commands`.

So neither side imports the other, and only the subcommand that runs is imported: `sailq ask` is quick.
"""

from __future__ import annotations

import codecs
import errno
import io
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from .errors import BadRequest, SailqError, Unsupported

GROUP = "sailq.commands"
FAILURE = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
USAGE_ERROR = 2
"""Exit code for what is mended on the command line; every other failure is 1."""


def exit_code(error: SailqError) -> int:
    """What the command that `error` ended exits with."""
    return USAGE_ERROR if isinstance(error, BadRequest | Unsupported) else FAILURE


def application(asked: str = "") -> typer.Typer:
    """The command with its subcommand `asked` alone; with all of them where there is none of that name."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(help="Qwen2-VL as an asynchronous service on Redis.")(lambda: None)
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in [asked] if asked in commands else sorted(commands):
        command = commands[name].load()
        if isinstance(command, typer.Typer):  # a command with subcommands
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `sailq` script. Runs `arguments`, by default those of this process, and raises SystemExit."""
    _escape_what_cannot_be_shown()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        application(words[0] if words else "")(args=words, prog_name="sailq")
    except SailqError as error:
        print(f"sailq: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        print(f"sailq: {error.filename or 'The output'} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(FAILURE)


def _escape_what_cannot_be_shown() -> None:
    """Makes an ASCII stdout show other characters as escapes, and one sentence on stderr say so."""

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        if not told:
            told.append(print("sailq: This terminal shows ASCII only; other characters are escaped.", file=sys.stderr))
        return codecs.backslashreplace_errors(error)

    told: list[None] = []
    codecs.register_error("sailq-escape", escape)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="sailq-escape")
