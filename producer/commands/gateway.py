"""`sailq gateway`: an HTTP server with OpenAI's API in front of the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sailq.shared.options import RedisUrl

from . import _flags as flags


def gateway(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65_535, help="Port to listen on.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", metavar="FILE", show_default="the variable SAILQ_GATEWAY_KEYS, or no keys",
            help="JSON file of API keys. It is read again when it changes.",
        ),
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Print a new key and its entry for the file, and exit."),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Serve other machines without keys: anybody who can reach it can use it."),
    ] = False,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files", metavar="DIR", show_default="no files and batches",
            help="Folder for the files and batches of OpenAI's API. Several gateways may share it.",
        ),
    ] = None,
    files_quota: Annotated[
        int, typer.Option("--files-quota", metavar="GIB", min=1, help="Maximum size of this folder.")
    ] = 10,
    archive: Annotated[
        Path | None,
        typer.Option(
            "--archive", metavar="FILE", show_default="no page",
            help="Keep the results of all jobs in this file, as `sailq archive` does, and show them on a page at /.",
        ),
    ] = None,
    archive_max_age: Annotated[float | None, flags.archive_age("--archive-max-age")] = None,
    archive_max_size: Annotated[float, flags.archive_size("--archive-max-size")] = 10.0,
    media_from: flags.MediaFrom = None,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="MIB", min=1, max=1024, help="Maximum size of a request.")
    ] = 64,
    max_media: Annotated[
        int,
        typer.Option(
            "--max-media", metavar="MIB", min=1, max=1024, help="Maximum size of all media fetched for a request."
        ),
    ] = 64,
    media_timeout: Annotated[
        float, typer.Option("--media-timeout", metavar="SECONDS", min=0.1, help="Maximum time to fetch a medium.")
    ] = 30.0,
    ssl_certfile: Annotated[
        Path | None, typer.Option("--ssl-certfile", metavar="FILE", help="Certificate, for https.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option("--ssl-keyfile", metavar="FILE", help="Private key of the certificate.")
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Serve OpenAI's API for the models of this queue until stopped.

    Clients of OpenAI's API work unchanged: set their base_url to
    http://HOST:PORT/v1, and model to a name that `sailq status` shows. The
    API's description is at /docs.

    It listens on this machine only. To serve others, give it keys.

    \b
    Examples:
      sailq gateway
      sailq gateway --new-key cameras
      sailq gateway --archive captions.db
      sailq gateway --host 0.0.0.0 --keys keys.json --files /var/lib/sailq
      sailq gateway --media-from cdn.example.com --media-from 192.168.1.0/24
    """
    from sailq.shared import terminal

    with terminal.command():
        import logging

        from sailq.shared.errors import BadRequest, Unsupported
        from sailq.shared.settings import load_settings

        from ..archive.retention import Retention

        try:
            from ..gateway.addresses import is_local
            from ..gateway.app import create_app
            from ..gateway.folder import Folder
            from ..gateway.keys import Keys, make_key
            from ..gateway.page.page import Page
            from ..gateway.server import bind, serve
            from ..media_fetching import MediaFetcher
        except ImportError:
            raise Unsupported("The gateway needs more packages: pip install 'sailq[gateway]'.") from None

        if new_key is not None:
            secret, entry = make_key(new_key)
            terminal.print_json(entry)
            terminal.note(f"the key, which is shown only now: {secret}")
            return
        if (ssl_certfile is None) != (ssl_keyfile is None):
            raise BadRequest("--ssl-certfile and --ssl-keyfile must be given together.")
        known = Keys(keys)
        if not known.given and not no_auth and not is_local(host):
            raise BadRequest(
                f"Other machines can reach {host}: give --keys, or --no-auth to serve anybody who can reach it."
            )
        settings = load_settings(redis_url=redis_url)
        fetcher = MediaFetcher(media_from or [], max_bytes=max_media << 20, max_seconds=media_timeout)
        folder = None if files is None else Folder(files, files_quota << 30)
        retention = Retention.of(archive_max_age, archive_max_size)
        page = None if archive is None else Page(archive, retention, known, max_body=max_body << 20)
        app = create_app(
            settings, known, fetcher, max_body=max_body << 20, local=is_local(host), folder=folder, page=page
        )
        logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.INFO)
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        with bind(host, port) as listening:
            scheme = "http" if ssl_certfile is None else "https"
            shown = f"[{host}]" if ":" in host else host
            address = f"{scheme}://{shown}:{listening.getsockname()[1]}"
            terminal.note(f"OpenAI's API is at {address}/v1")
            if page is not None:
                terminal.note(f"the page is at {address}/")
            try:
                serve(app, listening, ssl_certfile, ssl_keyfile)
            except KeyboardInterrupt:
                terminal.note("the gateway has stopped")
