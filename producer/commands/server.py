"""`sailq server`: runs an embedded server, for users without a Redis server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def server(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", show_default="data is not kept", help="Folder to keep the data in between runs."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", min=1, max=65535, show_default="6379", help="Port on 127.0.0.1."),
    ] = None,
    unix: Annotated[
        Path | None,
        typer.Option("--unix", metavar="PATH", help="Unix socket to use instead of a port. Only you can open it."),
    ] = None,
) -> None:
    """Run an embedded server for this machine until stopped.

    Other commands find it at the default port. With another port or a socket,
    pass them the URL that is printed. To serve other machines, run your own
    Redis or Valkey with a password.

    \b
    Examples:
      sailq server
      sailq server --unix /tmp/sailq.sock --data ~/.sailq
    """
    from sailq.shared import terminal

    with terminal.command():
        import time

        from sailq.shared.errors import BadRequest, ServerUnavailable

        from ..embedded import embedded_server

        if port is not None and unix is not None:
            raise BadRequest("Give --port or --unix, not both.")
        try:
            with embedded_server(port=None if unix else port or 6379, unix=unix, data=data) as embedded:
                print(f"export SAILQ_REDIS_URL={embedded.url}", flush=True)
                while embedded.alive():
                    time.sleep(1.0)
                raise ServerUnavailable("The server ended.")
        except KeyboardInterrupt:
            terminal.note("the server has stopped")
