"""`sailq caption`: many clips, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailq.shared.options import Json, Model, RedisUrl

from . import _flags as flags

if TYPE_CHECKING:
    from ..captioning.folders import LeftOut
    from ..captioning.inputs import Clip


def caption(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER|GLOB]...",
            show_default=False,
            help="Videos and images; folders give all that is in them, at any depth. - is --messages -.",
        ),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE.jsonl",
            help='Instead: rows {"messages": [...]}, media paths relative to the file. '
            'Other keys of a row come back under "metadata". - reads standard input.',
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", show_default="a description", help="What to ask of each video and image."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="OUT.jsonl",
            show_default="stdout",
            help="Where the rows go, as they come, and at the end in the order of the input.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="REPORT.html", help="Also write one page with pictures and timings."),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option("--sidecar", help="Also write each caption to {stem}.txt beside its clip, over what is there."),
    ] = False,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=4096, help="Most clips in flight at a time.")
    ] = 64,
    wait: Annotated[float, flags.WAIT] = 600.0,
    json: Json = False,
    redis_url: RedisUrl = None,
    model: Model = None,
    max_new_tokens: flags.MaxNewTokens = None,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    nframes: flags.NFrames = None,
    fps: flags.Fps = None,
    max_frames: flags.MaxFrames = None,
    resized_height: flags.ResizedHeight = None,
    resized_width: flags.ResizedWidth = None,
    min_pixels: flags.MinPixels = None,
    max_pixels: flags.MaxPixels = None,
    video_start: flags.VideoStart = None,
    video_end: flags.VideoEnd = None,
    video_sample_num: flags.VideoSampleNum = None,
) -> None:
    """Caption many clips as one batch.

    One JSON row a clip. A clip that fails has its "error" in its row and stops
    nothing; the exit code is then 1, as it is where a folder cannot be read.
    Run the same command again with the same --out: what was answered is kept,
    new and changed clips and those that failed are done.

    The closing figures go to stderr; with --json they are JSON, and go to
    stdout if the rows do not.

    \b
    Examples:
      sailq caption recordings/ --out captions.jsonl --report report.html
      sailq caption 'cam1/*.mp4' --prompt "Is anybody there?" > rows.jsonl
      sailq caption --messages rows.jsonl --out answers.jsonl
      make-rows | sailq caption - > answers.jsonl
    """
    from . import _terminal as terminal

    with terminal.command(json):
        import os
        import sys
        from contextlib import closing
        from dataclasses import asdict

        from rich.console import Console

        from sailq.shared.errors import BadRequest, SailqError
        from sailq.shared.jobs import GenerationOptions, parse
        from sailq.shared.settings import load_settings, model_name

        from ..captioning.batch import Captioning
        from ..captioning.names import as_text, for_terminal
        from ..captioning.sidecars import Sidecars
        from ..client import Client
        from . import _batch as batch

        options = parse(
            GenerationOptions,
            flags.given(
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop,
            ),
        )
        media = flags.media_options(
            nframes=nframes,
            fps=fps,
            max_frames=max_frames,
            resized_height=resized_height,
            resized_width=resized_width,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            video_start=video_start,
            video_end=video_end,
            video_sample_num=video_sample_num,
        )
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
            terminal.check_served(client, captioning.model)
            captioning.start()
            if captioning.rows:
                terminal.note(f"resuming: {len(captioning.rows)} of {len(captioning.clips)} are done")
            if captioning.kept:
                terminal.note(f"kept {len(captioning.kept)} more rows of earlier runs, which no clip of this one needs")
            try:
                summary = batch.run(
                    client, captioning, report=report, console=console, each=None if out else terminal.print_json
                )
            except (KeyboardInterrupt, SailqError):
                if out:
                    terminal.note(
                        f"{len(captioning.rows)} of {len(captioning.clips)} are in {for_terminal(str(out))}; "
                        "the same command goes on from there"
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
            from ..captioning.rows import as_line

            terminal.note(as_line(figures, sys.stderr.encoding or "utf-8"))
    if summary.failures or any(one.locked for one in left_out):
        raise typer.Exit(terminal.FAILURE)


def _clips(
    paths: list[str], messages: Path | None, prompt: str | None, media: dict[str, object], left_out: list[LeftOut]
) -> list[Clip]:
    from dataclasses import replace

    from sailq.shared.errors import BadRequest

    from ..captioning import inputs

    if paths == ["-"] and messages is None:
        paths, messages = [], Path("-")
    if messages is not None:
        if paths or prompt:
            raise BadRequest("--messages says all that is asked: leave out the files and --prompt.")
        clips = inputs.from_messages(messages)
    elif paths:
        prompts = {kind: prompt or str(flags.default_prompt([{"type": kind}])) for kind in ("video", "image")}
        clips = inputs.from_paths(paths, prompts, left_out)
    else:
        raise BadRequest("There is nothing to caption: name files or folders, or give --messages.")
    return [replace(clip, messages=flags.fill_in(clip.messages, media)) for clip in clips] if media else clips
