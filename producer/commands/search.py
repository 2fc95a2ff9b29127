"""`sailq search`: finds captions in an archive."""

from __future__ import annotations

from typing import Annotated

import typer

from sailq.shared.options import Json

from .archive import Camera, File, Since, Until


def search(
    file: File,
    text: Annotated[
        str, typer.Argument(metavar="[TEXT]", show_default=False, help="Words, or a phrase in quotation marks.")
    ] = "",
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only jobs without an answer.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="Most captions.")] = 20,
    json: Json = False,
) -> None:
    """Find captions in an archive, the newest first.

    A caption must have all words of TEXT, in any order. English words are found
    with other endings, such as cars for car. Chinese words are found wherever
    they are in a sentence.

    \b
    Examples:
      sailq search "red car" --file captions.db --since 2h
      sailq search 红色 --file captions.db --camera gate --json
      sailq search --failed --file captions.db
    """
    from sailq.shared import terminal

    with terminal.command(json):
        from datetime import datetime

        from ..archive.store import Archive
        from ..archive.times import read_span
        from ..captioning.names import for_terminal
        from .archive import row_of

        first, last = read_span(since, until)
        with Archive(file) as archive:
            found = archive.search(text, camera=camera, since=first, until=last, failed=failed, limit=limit)
        if json:
            for caption in found:
                terminal.print_json(row_of(caption))
            return
        for caption in found:
            when = datetime.fromtimestamp(caption.time).strftime("%Y-%m-%d %H:%M:%S")
            said = f"failed: {caption.error['message']}" if caption.error is not None else caption.text
            said = for_terminal(" ".join(said.split()))
            print("  ".join(filter(None, [when, for_terminal(caption.camera or caption.source), said])))
        if not found:
            terminal.note("no captions")
