"""`sailq bench`: runs sophon-demo's performance test on any model and device."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared.options import Json, Model, OwnRedisUrl, takes
from sailq.shared.settings import WorkerOptions, flag
from sailq.shared.validation import parse

from . import _flags as flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from ..bench import Report, Spread


@takes(worker=WorkerOptions)
@flags.answers
def bench(
    vision_inputs: Annotated[
        str,
        typer.Option(
            "--vision-inputs",
            "--vision_inputs",
            metavar="JSON",
            show_default="a rendered clip, 2 frames of 140 × 210",
            help="Media of each job, in the format of sophon-demo's --vision_inputs.",
        ),
    ] = "",
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Rendered clip of each job, in place of --vision-inputs."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", show_default="请描述视频中的内容", help="Question of each job."),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", min=1, max=10_000, help="Number of jobs to run one at a time.")
    ] = 5,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            max=100_000,
            show_default="4 for each slot",
            help="Number of jobs to run all at once, with two jobs in flight per slot.",
        ),
    ] = None,
    json: Json = False,
    redis_url: OwnRedisUrl = None,
    model: Model = None,
    *,
    generation: dict[str, Any],
    media: dict[str, Any],
    worker: dict[str, Any],
) -> None:
    """Measure first token latency and tokens per second, as sophon-demo does.

    One warm-up job runs first. Then --repeat jobs run one at a time. The first
    token latency starts with the file on disk and ends when the first text
    arrives. It covers reading, resizing and encoding the frames, the queue, the
    vision encoder and the prefill. Tokens per second leave out the first token.
    Then --jobs jobs keep all slots busy; that time includes reading the files.

    Beside this stand sophon-demo's published figures and, if --model is a directory
    with a bmodel, what its nets should reach by the compiler's estimate.

    Each job reads its file again and changes a corner of 8 × 8 pixels, so that
    no worker can answer it from a cache.

    Workers that already serve the model at --redis-url are measured; they should
    have nothing else to do. Without such a worker, one is started with the worker
    options below and stopped at the end. Without --redis-url it gets an embedded
    server.

    \b
    Examples:
      sailq bench
      sailq bench --model /data/qwen2-vl-7b --device tpu:0 --json
      sailq bench --model /data/qwen2-vl-7b --clip 8x140x224 --max-new-tokens 60
      sailq bench --vision-inputs '{"video": [{"path": "clip.mp4",
        "preprocess_config": {"resized_height": 140, "resized_width": 210,
        "video_sample_num": 2}}], "image": []}'
    """
    from sailq.shared import terminal

    with terminal.command(json), ExitStack() as stack:
        from dataclasses import asdict
        from tempfile import TemporaryDirectory

        from rich.console import Console

        from sailq.shared.errors import BadRequest
        from sailq.shared.jobs import MAX_FRAMES, MAX_SIDE
        from sailq.shared.media.messages import prepare
        from sailq.shared.media.sizing import FRAME_FACTOR, clip_size
        from sailq.shared.settings import load_settings, model_name
        from sailq.shared.workers import live_workers

        from ..bench import QUESTION, measure, sample_clip
        from ..client import Client
        from ..media_defaults import fill_in
        from ..samples import SampleError
        from ..vision_inputs import to_parts

        options = flags.check(generation, media)
        parse(WorkerOptions, worker)
        settings = load_settings(redis_url=redis_url, model=model)
        size = None if clip is None else clip_size(clip)
        if size and not (FRAME_FACTOR <= size[0] <= MAX_FRAMES and max(size[1:]) <= MAX_SIDE):
            raise BadRequest(
                f"--clip takes {FRAME_FACTOR} to {MAX_FRAMES} frames of at most {MAX_SIDE} pixels a side, not {clip}."
            )
        if size and vision_inputs:
            raise BadRequest("--clip and --vision-inputs cannot be combined.")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sailq-bench-")))
        try:
            parts = to_parts(vision_inputs) if vision_inputs else [{**sample_clip(folder, size), **media}]
        except SampleError as error:
            raise BadRequest(f"The sample clip cannot be made: {error}.") from None
        content = [*parts, {"type": "text", "text": prompt or QUESTION}]
        messages = fill_in([{"role": "user", "content": content}], media)
        prepare(messages)  # fails before anything is started if media cannot be read

        name = model_name(settings.model)
        url, watch = _stage(stack, redis_url, settings.model, name, worker, folder)
        console = Console(stderr=True)
        with Client(url, settings=settings) as client, console.status("measuring") as status:
            report = measure(
                client,
                messages,
                workers=live_workers(client.connection, name),
                directory=settings.model,
                options=options,
                repeat=repeat,
                jobs=jobs,
                tell=status.update,
                watch=watch,
            )
    if json:
        terminal.print_json(asdict(report))
    else:
        _print(report)


def _stage(
    stack: ExitStack, redis_url: str | None, model: str, name: str, worker_options: dict[str, Any], logs: Path
) -> tuple[str, Callable[[], None]]:
    """Starts what is missing. Returns the server's URL, and a check that raises SailqError if no worker is left."""
    from sailq.shared import terminal
    from sailq.shared.connection import connect
    from sailq.shared.errors import BadRequest, SailqError
    from sailq.shared.workers import live_workers

    from ..demo import set_up

    if redis_url is not None:
        connection = stack.enter_context(connect(redis_url))
        workers = live_workers(connection, name)
        if workers and worker_options:
            given = " and ".join(map(flag, worker_options))
            raise BadRequest(f"A worker on this server already serves {name}: omit {given}, or name another server.")
        if workers:
            slots, busy = (sum(getattr(worker, of) for worker in workers) for of in ("slots", "running"))
            also = f"; they also run {busy} other jobs, which will affect the figures" if busy else ""
            terminal.note(f"{len(workers)} running with {name}, {slots} jobs at a time{also}")

            def anybody() -> None:
                if not live_workers(connection, name):
                    raise SailqError(f"No worker serves {name} any more.")

            return redis_url, anybody
    options = [word for option, value in worker_options.items() for word in (flag(option), str(value))]
    stage = set_up(
        stack, redis_url=redis_url, model=model, logs=logs, say=terminal.note, worker_options=options
    )
    return stage.redis_url, stage.worker.check


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(report))
    console.print(_details(report))


def _table(report: Report) -> Table:
    """The results as sophon-demo's table, with its column names."""
    from rich.table import Column, Table

    from ..captioning.batch import number

    def cell(spread: Spread | None) -> str:
        if spread is None:
            return number(None)
        return f"{number(spread.median)} ({number(spread.min)} – {number(spread.max)})"

    measured, published = report.one_at_a_time, report.published
    table = Table(Column("", overflow="fold"))
    for column in ("first token latency(s)", "token per second(tokens/s)"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row(
        f"{report.device}, {report.model}", cell(measured.first_token_latency), cell(measured.tokens_per_second)
    )
    table.add_row(
        f"published (sophon-demo, {published.platform}, 7B INT4)",
        number(published.first_token_latency),
        number(published.tokens_per_second),
        style="dim",
    )
    if report.estimate is not None:
        table.add_row("estimated for one box", number(report.estimate.first_token_latency),
                      number(report.estimate.tokens_per_second), style="dim")
    return table


def _details(report: Report) -> Table:
    """A table of the job, the parts of the time to first token, and the throughput of all slots."""
    from rich.table import Table

    from ..captioning.batch import number, seconds

    one, all_ = report.one_at_a_time, report.all_at_once
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row(
        "one at a time",
        f"median (min – max) of {one.jobs} jobs, each {report.prompt_tokens} tokens asked, "
        f"{report.vision_tokens} of them vision, and {number(one.completion_tokens)} answered",
    )
    stages = (f"{name.replace('_', ' ')} {number(1000 * part)} ms" for name, part in one.breakdown.items())
    table.add_row("first token", ", ".join(stages))
    table.add_row(
        "all at once",
        f"{number(all_.tokens_per_second)} tokens/s, {all_.captions_per_hour:,.0f} captions/hour: {all_.jobs} jobs, "
        f"{all_.in_flight} in flight for {report.slots} slots, in {seconds(all_.wall)}",
    )
    if report.estimate is not None:
        table.add_row(
            "estimated",
            f"{number(report.estimate.all_tokens_per_second)} tokens/s, "
            f"{report.estimate.captions_per_hour:,.0f} captions/hour for one box: {report.estimate.basis}",
        )
    return table
