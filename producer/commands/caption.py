"""`sailq caption`: captions many clips, one row per clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared.options import Json, Model, RedisUrl

from . import _flags as flags

if TYPE_CHECKING:
    from ..captioning.folders import LeftOut
    from ..captioning.inputs import Clip


@flags.answers
def caption(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER|GLOB]...",
            show_default=False,
            help="Videos and images. A folder stands for all its files, at any depth; - means --messages -.",
        ),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE.jsonl",
            help='Read rows {"messages": [...]} instead; media paths are relative to the file. Other keys of a '
            'row are returned under "metadata". - reads stdin.',
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", show_default="describe the media", help="Question about each video and image."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="OUT.jsonl",
            show_default="stdout",
            help="File for the rows. They are added as they arrive, and put into the order of the input at the end.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="REPORT.html", help="Also write a page with thumbnails, captions and timings."
        ),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar", help="Also write each caption to {stem}.txt beside its clip. Existing files are overwritten."
        ),
    ] = False,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=4096, help="Maximum number of clips in flight.")
    ] = 64,
    wait: flags.Wait = 600.0,
    schema: flags.Schema = None,
    choice: flags.Choice = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    model: Model = None,
    *,
    generation: dict[str, Any],
    media: dict[str, Any],
) -> None:
    """Caption many clips as one batch.

    Writes one JSON row per clip. A clip that fails has an "error" in its row and
    does not stop the others. The exit code is 1 if a clip failed or a folder
    could not be read.

    To resume a batch, run the same command with the same --out. Answered clips
    are kept; new, changed and failed clips are captioned.

    With --max-frames, --nframes can be more than a video has; all its frames are
    then taken.

    The summary goes to stderr. With --json it is JSON, and goes to stdout if the
    rows go to a file.

    \b
    Examples:
      sailq caption recordings/ --out captions.jsonl --report report.html
      sailq caption 'cam1/*.mp4' --prompt "Is anybody there?" > rows.jsonl
      sailq caption --messages rows.jsonl --out answers.jsonl
      make-rows | sailq caption - > answers.jsonl
      sailq caption cams/ --prompt "What happens?" --schema event.json > events.jsonl
    """
    from sailq.shared import terminal

    with terminal.command(json):
        import os
        import sys
        from contextlib import closing
        from dataclasses import asdict

        from rich.console import Console

        from sailq.shared.errors import BadRequest, SailqError
        from sailq.shared.settings import load_settings, model_name

        from ..captioning.batch import Captioning
        from ..captioning.names import as_text, for_terminal
        from ..captioning.sidecars import Sidecars
        from ..client import Client
        from . import _batch as batch
        from ._answer import check_served

        options = flags.check(generation, media, schema, choice)
        if out is not None and report is not None and out.resolve() == report.resolve():
            raise BadRequest("--out and --report name the same file.")
        settings = load_settings(redis_url=redis_url, model=model)
        left_out: list[LeftOut] = []
        clips = _clips(paths or [], messages, prompt, media, left_out)
        own = {os.path.realpath(path) for path in (out, report) if path}
        read = {os.path.realpath(place) for clip in clips for place in clip.places}
        if taken := own & (read | {os.path.realpath(messages)} if messages else read):
            raise BadRequest(f"{for_terminal(min(taken))} is a file of this batch: choose another --out or --report.")
        left_out = [one for one in left_out if os.path.realpath(one.path) not in own]
        captioning = Captioning(
            clips=clips,
            model=model_name(settings.model),
            options=options,
            out=out,
            window=window,
            wait=wait,
            sidecars=Sidecars(clips, map(Path, own)) if sidecar else None,
        )
        console = Console(stderr=True)
        with Client(settings=settings) as client, closing(captioning):
            check_served(client, captioning.model)
            captioning.start()
            if captioning.rows:
                terminal.note(f"resuming: {len(captioning.rows)} of {len(captioning.clips)} are done")
            if captioning.kept:
                terminal.note(f"kept {len(captioning.kept)} rows of earlier runs for clips that are not in this run")
            try:
                summary = batch.run(
                    client, captioning, report=report, console=console, each=None if out else terminal.print_json
                )
            except (KeyboardInterrupt, SailqError):
                if out:
                    terminal.note(
                        f"{len(captioning.rows)} of {len(captioning.clips)} are in {for_terminal(str(out))}; "
                        "run the same command to continue"
                    )
                raise
        figures = {**summary.as_json(), "left_out": [{**asdict(one), "path": as_text(one.path)} for one in left_out]}
        if not json:
            batch.tell_failures(captioning, console)
            batch.tell_left_out(left_out, console)
            console.print(batch.closing_table(summary))
        elif out:
            terminal.print_json(figures)
        else:
            from sailq.shared.terminal import as_line

            terminal.note(as_line(figures, sys.stderr.encoding or "utf-8"))
    if summary.failures or any(one.locked for one in left_out):
        raise typer.Exit(terminal.FAILURE)


def _clips(
    paths: list[str], messages: Path | None, prompt: str | None, media: dict[str, object], left_out: list[LeftOut]
) -> list[Clip]:
    from dataclasses import replace

    from sailq.shared.errors import BadRequest

    from ..captioning import inputs
    from ..media_defaults import fill_in

    if paths == ["-"] and messages is None:
        paths, messages = [], Path("-")
    if messages is not None:
        if paths or prompt:
            raise BadRequest("--messages has all media and prompts: leave out the files and --prompt.")
        clips = inputs.from_messages(messages)
    elif paths:
        prompts = {kind: prompt or str(flags.default_prompt([{"type": kind}])) for kind in ("video", "image")}
        clips = inputs.from_paths(paths, prompts, left_out)
    else:
        raise BadRequest("There is nothing to caption: name files or folders, or give --messages.")
    return [replace(clip, messages=fill_in(clip.messages, media)) for clip in clips] if media else clips
