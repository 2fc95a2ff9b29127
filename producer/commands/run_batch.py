"""`sailq run-batch`: answers a file of OpenAI requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sailq.shared.options import Json, Model, RedisUrl

from . import _flags as flags

_MEDIA_BYTES = 64 * 2**20
"""The most bytes of all media fetched for a request, as in the gateway."""
_MEDIA_SECONDS = 30.0
"""The longest time to fetch a medium."""


def run_batch(
    input_file: Annotated[
        Path,
        typer.Option(
            "-i", "--input-file", metavar="IN.jsonl", help="File of requests, in the form of OpenAI's Batch API."
        ),
    ],
    output_file: Annotated[
        Path,
        typer.Option(
            "-o", "--output-file", metavar="OUT.jsonl",
            help="File for the responses. They are added as they arrive, and put into the order of the input at the "
            "end.",
        ),
    ],
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=4096, help="Maximum number of requests in flight.")
    ] = 64,
    wait: flags.Wait = 600.0,
    media_from: flags.MediaFrom = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    model: Model = None,
) -> None:
    """Answer a file of OpenAI requests as one batch.

    Each line of the input is a request, as for OpenAI's Batch API and for vLLM's
    run-batch. A body without a model asks --model.

    \b
      {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
       "body": {"model": "sailq-tiny", "messages": [...]}}

    An image_url or a video_url can be a data URL, a file:// URL, a path, or an
    http(s) address of a --media-from. Relative paths start from the folder of
    the input.

    The whole input is checked first. Then one line is written for each request:

    \b
      {"id": ..., "custom_id": "1", "response": {"status_code": 200, ...,
       "body": {"object": "chat.completion", ...}}, "error": null}

    A request that is refused or fails gets the response that the gateway would
    send, with its status and OpenAI's error, and does not stop the others. The
    exit code is then 1.

    To resume a batch, run the same command again. Answered requests are kept;
    new, changed and failed requests are asked.

    The summary goes to stderr, or with --json as JSON to stdout.

    \b
    Examples:
      sailq run-batch -i requests.jsonl -o responses.jsonl
      sailq run-batch -i requests.jsonl -o responses.jsonl --window 256 --json
      sailq run-batch -i in.jsonl -o out.jsonl --media-from cdn.example.com
    """
    from sailq.shared import terminal

    with terminal.command(json):
        import os
        from contextlib import closing

        from rich.console import Console

        from sailq.shared.errors import BadRequest, SailqError
        from sailq.shared.settings import load_settings, model_name
        from sailq.shared.workers import live_workers

        from ..captioning.batch import number, seconds
        from ..captioning.names import for_terminal
        from ..client import Client
        from ..openai_api.batch_input import BatchInput
        from ..openai_api.batch_run import BatchRun
        from ._progress import Waiting, follow, tell_reasons

        if os.path.realpath(input_file) == os.path.realpath(output_file):
            raise BadRequest("--input-file and --output-file name the same file.")
        settings = load_settings(redis_url=redis_url, model=model)
        console = Console(stderr=True)
        with (
            closing(BatchInput(input_file, model=model_name(settings.model))) as given,
            Client(settings=settings) as client,
            _fetching(media_from or []) as fetch,
        ):
            served = live_workers(client.connection)
            # A request is refused if all workers serve other models.
            waiting = Waiting(client, [name for name in given.models if not served or client.card(name)], console)
            waiting.check()
            run = BatchRun(given, output_file, window=window, wait=wait, base=input_file.parent, fetch=fetch)
            with closing(run) as batch:
                total = len(given.lines)
                if batch.resumed:
                    terminal.note(f"resuming: {batch.resumed} of {total} are done")
                rows = batch.run(client, idle=waiting.check)
                shown = follow(
                    rows, lambda row: row.failed, label="requests", total=total, earlier=list(batch.rows.values()),
                    console=console,
                )
                try:
                    with closing(rows), closing(shown):
                        for _ in shown:
                            pass
                except (KeyboardInterrupt, SailqError):
                    terminal.note(
                        f"{len(batch.rows)} of {total} are in {for_terminal(str(output_file))}; "
                        "run the same command to continue"
                    )
                    raise
                answered = total - batch.resumed
                figures = {
                    "requests": total, "failures": batch.failures, "resumed": batch.resumed, "wall": batch.wall,
                    "requests_per_second": answered / batch.wall if answered and batch.wall > 0 else None,
                }
                reasons = [(line.custom_id, row.reason) for line, row in batch.ordered() if row.failed]
        if json:
            terminal.print_json(figures)
        else:
            tell_reasons(reasons, console)
            rate = number(figures["requests_per_second"])
            terminal.note(f"{total} requests ({batch.resumed} by an earlier run), {batch.failures} failures, "
                          f"{rate} requests/s, {seconds(batch.wall)}")
    if reasons:
        raise typer.Exit(terminal.FAILURE)


@contextmanager
def _fetching(hosts: list[str]) -> Iterator[Callable[[list[str]], list[bytes]] | None]:
    """A function that gets what is at addresses of the hosts; None if there are no hosts."""
    if not hosts:
        yield None
        return
    from sailq.shared.errors import Unsupported

    try:
        from anyio.from_thread import start_blocking_portal

        from ..media_fetching import MediaFetcher
    except ImportError:
        raise Unsupported("--media-from needs more packages: pip install 'sailq[gateway]'.") from None
    fetcher = MediaFetcher(hosts, max_bytes=_MEDIA_BYTES, max_seconds=_MEDIA_SECONDS)
    with start_blocking_portal() as portal:
        yield lambda urls: portal.call(fetcher.fetch, urls)
