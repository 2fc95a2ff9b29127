"""`sailq archive`: keeps the results of all jobs in a file; exports it, and deletes from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailq.shared.errors import BadRequest
from sailq.shared.options import RedisUrl

from . import _flags as flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..archive.caption import Caption
    from ..archive.store import Archive

archive = typer.Typer(
    invoke_without_command=True,
    help="Keep the results of all jobs in a file, longer than the server does, until stopped.\n\n"
    "The file is an SQLite database. It has captions, times, cameras, metadata, timings, errors, and the pictures that "
    "the model saw. Run one such process for each server, as the server's user `worker`. It goes on where it stopped. "
    "The server keeps the newest 10,000 results for it meanwhile (SAILQ_RESULTS_STREAM).\n\n"
    "\b\nExamples:\n  sailq archive --file captions.db\n"
    "  sailq archive --file captions.db --max-age 30 --max-size 100\n"
    "  sailq search 红色 --file captions.db",
)

File = Annotated[
    Path, typer.Option("--file", metavar="FILE", envvar="SAILQ_ARCHIVE", help="The archive, an SQLite database.")
]
Camera = Annotated[str | None, typer.Option("--camera", metavar="NAME", help="Only this camera.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Only from this time on: 2026-11-28T10:00, or an age: 15m, 6h, 7d."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only before this time.")]


@archive.callback()
def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", envvar="SAILQ_ARCHIVE", help="The archive; made if it is missing."),
    ] = None,
    max_age: Annotated[float | None, flags.archive_age("--max-age")] = None,
    max_size: Annotated[float, flags.archive_size("--max-size")] = 10.0,
    redis_url: RedisUrl = None,
) -> None:
    from sailq.shared import terminal

    if context.invoked_subcommand is not None:
        source = context.get_parameter_source("file")
        if source is not None and source.name == "COMMANDLINE":
            raise BadRequest(f"Give --file after {context.invoked_subcommand}.")
        return
    with terminal.command():
        import logging
        import threading
        from contextlib import closing

        from sailq.shared.connection import address, connect
        from sailq.shared.settings import load_settings
        from sailq.shared.workers import live_workers

        from ..archive.archiver import Archiver, WriterLock
        from ..archive.retention import Retention
        from ..archive.store import Archive

        if file is None:
            raise BadRequest("Name the archive with --file FILE, or in the variable SAILQ_ARCHIVE.")
        logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.INFO)
        retention = Retention.of(max_age, max_size)
        with connect(load_settings(redis_url=redis_url).redis_url) as connection:
            live_workers(connection)  # fails now if the server does not answer
            with closing(WriterLock(file)), Archive(file, create=True) as opened:
                terminal.note(f"archiving the results of {address(connection)} to {file}")
                try:
                    Archiver(connection, opened, retention).run(threading.Event())
                except KeyboardInterrupt:
                    terminal.note("the archive has stopped")


@archive.command()
def export(
    file: File,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", show_default="standard output", help="File for the rows.")
    ] = None,
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write captions as JSONL, one JSON object per line, the newest first.

    \b
    Examples:
      sailq archive export --file captions.db --since 7d > week.jsonl
      sailq archive export --file captions.db --camera gate --out gate.jsonl
    """
    from sailq.shared import terminal

    with terminal.command():
        from ..archive.store import Archive, files_of
        from ..archive.times import read_span
        from ..durable import draft, publish

        first, last = read_span(since, until)
        with Archive(file) as opened:
            rows = (row_of(caption) for caption in _all(opened, camera, first, last))
            if out is None:
                for row in rows:
                    terminal.print_json(row)
                return
            if out.resolve() in files_of(file.resolve()):
                raise BadRequest(f"{out} is a file of the archive: choose another --out.")
            try:
                with draft(out.resolve().parent) as (written, place):
                    written.writelines((terminal.as_line(row) + "\n").encode() for row in rows)
                    publish(written, place, out.resolve())
            except OSError as error:
                raise BadRequest(f"{out} cannot be written: {error.strerror}.") from None


@archive.command()
def delete(
    file: File,
    camera: Annotated[str, typer.Option("--camera", metavar="NAME", help="The camera.")],
) -> None:
    """Delete all captions and pictures of one camera. The archive may be in use meanwhile.

    \b
    Examples:
      sailq archive delete --file captions.db --camera garden
    """
    from sailq.shared import terminal

    with terminal.command():
        from ..archive.retention import delete_camera
        from ..archive.store import Archive

        if not camera:
            raise BadRequest("--camera is empty: name the camera.")
        with Archive(file) as opened:
            print(f"{delete_camera(opened, camera)} captions deleted")


def row_of(caption: Caption) -> dict[str, object]:
    """A caption as JSON. `time`: seconds since the epoch."""
    return {"time": caption.time, **vars(caption)}


def _all(opened: Archive, camera: str | None, since: float | None, until: float | None) -> Iterator[Caption]:
    before = None
    while captions := opened.search(camera=camera, since=since, until=until, before=before, limit=500):
        yield from captions
        before = captions[-1].id
