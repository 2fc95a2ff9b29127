"""`sailq exporter`: exports the server's state to Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer

from sailq.shared.options import RedisUrl

PORT = 9600


def exporter(
    redis_url: RedisUrl = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65_535, metavar="PORT", help="Port to bind.")] = PORT,
    address: Annotated[
        str,
        typer.Option("--address", metavar="ADDRESS", show_default="0.0.0.0, all addresses", help="Address to bind."),
    ] = "0.0.0.0",
) -> None:
    """Export queues, failures and the server's memory to Prometheus until stopped.

    One exporter per server is enough. It reads the server at each scrape and
    writes nothing; the server's user `reader` has the rights it needs. Workers
    export their own metrics: see sailq worker --metrics-port.

    \b
    Examples:
      sailq exporter
      sailq exporter --address 127.0.0.1 --port 9600
    """
    from sailq.shared import terminal

    with terminal.command():
        import threading

        from sailq.shared.connection import address as of_server
        from sailq.shared.connection import connect
        from sailq.shared.metrics_server import exposed
        from sailq.shared.settings import load_settings

        from ..exporter import ServerState

        try:
            # It must report an unreachable server before Prometheus' scrape times out.
            with (
                connect(load_settings(redis_url=redis_url).redis_url, retries=1) as connection,
                exposed(address, port) as registry,
            ):
                registry.register(ServerState(connection))
                terminal.note(f"metrics of the server at {of_server(connection)} are on port {port} of {address}")
                threading.Event().wait()
        except KeyboardInterrupt:
            terminal.note("the exporter has stopped")
