"""The `sailq` command: its subcommands are found through the entry point group `sailq.commands`.

So neither side imports the other, and only the subcommand that runs is imported: `sailq ask` is quick.
"""

from __future__ import annotations

import sys
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


def main() -> None:
    """Entry point of the `sailq` script."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(help="Qwen2-VL as an asynchronous service on Redis.")(lambda: None)
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in [asked] if asked in commands else sorted(commands):
        command = commands[name].load()
        if isinstance(command, typer.Typer):  # a command with subcommands
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    try:
        app()
    except SailqError as error:
        print(f"sailq: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
