"""The command line options that several subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url", envvar="SAILQ_REDIS_URL", metavar="URL", show_default="redis://127.0.0.1:6379/0",
        help="The server: redis://, rediss://, unix:// or redis+sentinel://. With a password, set the variable: all "
        "see command lines.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", envvar="SAILQ_MODEL", metavar="NAME|DIR", show_default="sailq-tiny",
        help="A model's name, or its directory.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]
