"""`sailq demo`: runs the whole service once, from rendered clips to captions next to the true answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailq.shared.options import Model, OwnRedisUrl

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..captioning.batch import Captioning
    from ..openai_demo import Answer


_WIDEST = 200
"""The most characters of a caption in the table. The files have all of it."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for clips, captions, report and logs.")
    ] = Path("demo-out"),
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, max=10_000, help="Number of clips.")] = 12,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the rendered clips.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the worker and the embedded server running.")
    ] = False,
    with_page: Annotated[
        bool, typer.Option("--page", help="Show the captions on a page, and keep it up until stopped.")
    ] = False,
    redis_url: OwnRedisUrl = None,
    model: Model = None,
) -> None:
    """Render clips, caption them through the queue, and compare the captions with the truth.

    Starts a worker, and an embedded server unless --redis-url names one. Asks
    about one clip through `sailq gateway` too, with openai's client. Stops them
    at the end. Clips, captions.jsonl, report.html and logs stay in --out.

    \b
    Examples:
      sailq demo
      sailq demo --page
      sailq demo --count 50 --seed 1 --out /tmp/demo
      SAILQ_REDIS_URL=redis://queue.local:6379/0 sailq demo
    """
    from sailq.shared import terminal

    with terminal.command():
        from contextlib import ExitStack, suppress

        from rich.console import Console

        from sailq.shared.connection import without_password
        from sailq.shared.errors import BadRequest, Unsupported
        from sailq.shared.jobs import GenerationOptions
        from sailq.shared.settings import load_settings, model_name

        from ..captioning.batch import Captioning, right
        from ..captioning.inputs import from_messages
        from ..client import Client
        from ..demo import set_up, start_page
        from ..openai_demo import ask_with_openai
        from ..samples import SampleError, write_samples
        from . import _batch as batch

        if with_page and redis_url is not None:
            raise BadRequest("--page uses a server of its own: unset SAILQ_REDIS_URL, and give no --redis-url.")
        if with_page and keep:
            raise BadRequest("--page and --keep cannot be combined.")
        console = Console(stderr=True)
        settings = load_settings(redis_url=redis_url, model=model)
        captions, report = out / "captions.jsonl", out / "report.html"
        try:
            out.mkdir(parents=True, exist_ok=True)
            captions.unlink(missing_ok=True)
            samples = list(write_samples(seed, count, out / "samples"))
        except (OSError, SampleError) as error:
            raise BadRequest(f"The samples cannot be made in {out}: {error}.") from None
        terminal.note(f"{count} samples in {out / 'samples'}")
        with ExitStack() as stack:
            stage = set_up(stack, redis_url=redis_url, model=settings.model, logs=out, say=terminal.note)
            page = start_page(stack, stage.redis_url, out) if with_page else None
            if page is not None:
                terminal.note(f"the page is at {page.address}")
            captioning = Captioning(
                clips=from_messages(out / "samples" / "truth.jsonl"),
                model=model_name(settings.model),
                options=GenerationOptions(),
                window=16,
                out=captions,
            )
            with Client(stage.redis_url, settings=settings) as client:
                captioning.start()
                summary = batch.run(client, captioning, report=report, console=console, watch=stage.worker.check)
            video = next(sample for sample in samples if sample["task"] == "video")  # the first of each five
            try:
                answer = ask_with_openai(
                    stage.redis_url, captioning.model, video["messages"], out / "samples", logs=out
                )
            except Unsupported as error:
                answer = None
                terminal.note(f"not asked through the gateway: {error}")
            rows = captioning.ordered()
            Console().print(_table(captioning))
            Console().print(f"{sum(map(bool, map(right, rows)))} of {len(rows)} match the truth\n")
            if answer is not None:
                Console().print(_asked(answer))
            console.print(batch.closing_table(summary))
            terminal.note(f"\ncaptions: {captions}\nreport:   {report}")
            if page is not None:
                terminal.note(f"page:     {page.address} until Ctrl-C")
                with suppress(KeyboardInterrupt):
                    page.wait()
            if keep:
                stack.pop_all()
        if keep:
            processes = " ".join(str(one.pid) for one in reversed(stage.started))
            terminal.note(
                f"still running; use it:  export SAILQ_REDIS_URL={without_password(stage.redis_url)}; sailq chat\n"
                f"and stop it:  kill {processes}"
            )
    if summary.failures:
        raise typer.Exit(terminal.FAILURE)


def _asked(answer: Answer) -> Text:
    from rich.text import Text

    return Text(
        f"Through a gateway: openai.OpenAI(base_url={answer.base_url!r}):\n"
        f"  {answer.question}\n  {answer.answer}\n"
    )


def _table(captioning: Captioning) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..captioning.batch import right, seconds

    table = Table()
    for name in ("task", "caption", "truth", "ok"):
        table.add_column(name, overflow="fold")  # Chinese has no spaces to break at
    table.add_column("first token", justify="right")
    for row in captioning.ordered():
        about = row["metadata"]
        if row["error"] is None:
            said = Text(" ".join(row["text"].split())[:_WIDEST])
        else:
            said = Text(row["error"]["message"], style="red")
        mark = Text("✓", style="green") if right(row) else Text("✗", style="red")
        table.add_row(
            about["task"], said, Text(about["answer"]), mark, seconds(row["metrics"]["timings"]["time_to_first_token"])
        )
    return table
