"""`sailq worker`. The model's libraries are imported when the command runs, not when its help is shown."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shared.options import Model, RedisUrl

DEVICES = ("cpu",)


def worker(
    redis_url: RedisUrl = None,
    model: Model = None,
    device: Annotated[
        str, typer.Option("--device", metavar="|".join(DEVICES), help="What runs the model.")
    ] = "cpu",
    slots: Annotated[
        int,
        typer.Option("--slots", min=1, max=256, help="How many answers are decoded together."),
    ] = 8,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=1024, show_default="as many as help", help="CPU threads of the model."),
    ] = None,
) -> None:
    """Load a model once and answer its jobs until stopped.

    SIGTERM or Ctrl-C lets the running jobs finish; a second one leaves at once,
    and other workers take them over.

    \b
    Examples:
      sailq worker
      sailq worker --model /data/qwen2-vl-2b --slots 4
      SAILQ_REDIS_URL=redis://queue.local:6379/0 sailq worker --threads 2
    """
    from ..shared.errors import Unsupported
    from ..shared.settings import load_settings

    if device not in DEVICES:
        raise Unsupported(f"There is no device {device!r}; there is {', '.join(DEVICES)}.")
    settings = load_settings(redis_url=redis_url, model=model)
    _log_to_stderr()

    from .serve import serve

    serve(settings, slots=slots, threads=threads)


def _log_to_stderr() -> None:
    import logging
    import os

    # Else transformers, of which a worker uses the tokenizer alone, says first of all that it misses PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("sailq").setLevel(logging.INFO)
    # RQ says at INFO, twice, that a job is done.
    logging.getLogger("rq.worker").addFilter(lambda record: record.levelno >= logging.WARNING)
