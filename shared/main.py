"""The `sailq` command: its subcommands are found through the entry point group `sailq.commands`.

So neither side imports the other, and only the subcommand that runs is imported: `sailq ask` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from .errors import BadRequest, SailqError, Unsupported

GROUP = "sailq.commands"
FAILURE = 1
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
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        application(words[0] if words else "")(args=words, prog_name="sailq")
    except SailqError as error:
        print(f"sailq: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
