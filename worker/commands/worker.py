"""`sailq worker`. The model's libraries are imported when the command runs, not when its help is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sailq.shared.options import Model, RedisUrl


def worker(
    redis_url: RedisUrl = None,
    model: Model = None,
    alias: Annotated[
        str | None,
        typer.Option(
            "--alias", envvar="SAILQ_ALIAS", metavar="NAME", show_default="none",
            help="A second name to take jobs under, which workers with other versions of the model share: of the same "
            "context and sizes, since producers go by those of the one that started last.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="cpu|tpu:N|emulator",
            help="What runs the model: this machine's CPU, its Nth BM1684X, or that chip's C model.",
        ),
    ] = "cpu",
    bmodel: Annotated[
        Path | None,
        typer.Option("--bmodel", show_default="the one in the model's directory", help="What to load on a TPU."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", min=1, max=256, show_default="8 on a CPU, a bmodel's own on a TPU",
            help="How many answers are decoded together.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=1024, show_default="as many as help", help="CPU threads of the model."),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            "--drain-seconds", min=0.0, max=86_400.0,
            help="What running jobs have to finish in when the worker is told to stop; others go back to the queue.",
        ),
    ] = 60.0,
    device_timeout: Annotated[
        float | None,
        typer.Option(
            "--device-timeout", min=0.1, max=86_400.0, metavar="SECONDS", show_default="120, on the emulator 3600",
            help="A call to the device that takes longer ends the worker with exit code 3, as one that fails does.",
        ),
    ] = None,
    vision_cache: Annotated[
        int,
        typer.Option(
            "--vision-cache", min=0, max=1 << 20, metavar="MB",
            help="Memory for what was made of clips, so that a second question about one does not encode it again.",
        ),
    ] = 128,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65_535, envvar="SAILQ_METRICS_PORT", metavar="PORT", show_default="none",
            help="Show metrics to Prometheus here; each worker of a machine has a port of its own.",
        ),
    ] = None,
    metrics_address: Annotated[
        str | None,
        typer.Option(
            "--metrics-address", envvar="SAILQ_METRICS_ADDRESS", metavar="ADDRESS", show_default="0.0.0.0, all",
            help="The address of this machine whose port that is.",
        ),
    ] = None,
) -> None:
    """Load a model once and answer its jobs until stopped.

    SIGTERM or Ctrl-C lets the running jobs finish; a second one hands them back
    to the queue, for other workers, and so does the end of --drain-seconds.

    \b
    Examples:
      sailq worker
      sailq worker --model /data/qwen2-vl-2b --slots 4
      sailq worker --model /data/qwen2-vl-7b --device tpu:0
      sailq worker --model /data/qwen2-vl-7b-2026-11 --alias qwen2-vl-7b --device tpu:0
      sailq worker --device emulator --bmodel models/BM1684X/sailq-tiny_fp16_seq128_1dev.bmodel
      SAILQ_REDIS_URL=redis://queue.local:6379/0 sailq worker --threads 2
      sailq worker --metrics-port 9610
    """
    from sailq.shared.settings import load_settings

    from ..runners.devices import EMULATOR, check_device

    check_device(device)
    settings = load_settings(
        redis_url=redis_url, model=model, alias=alias, metrics_port=metrics_port, metrics_address=metrics_address
    )
    _log_to_stderr()

    from functools import partial

    from ..engine import Engine
    from ..process.serve import serve

    serve(settings, partial(
        Engine.load, device=device, bmodel=bmodel, slots=slots, threads=threads, vision_cache_bytes=vision_cache << 20
    ), drain_seconds=drain_seconds, device_timeout=device_timeout or (3600.0 if device == EMULATOR else 120.0))


def _log_to_stderr() -> None:
    import logging
    import os

    stderr = os.fstat(2)
    # The journal puts the time before each line itself.
    journal = os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    logging.basicConfig(
        format=("" if journal else "%(asctime)s ") + "%(levelname)-7s %(name)s: %(message)s", level=logging.WARNING
    )
    logging.getLogger("sailq").setLevel(logging.INFO)
    # RQ says at INFO, twice, that a job is done.
    logging.getLogger("rq.worker").addFilter(lambda record: record.levelno >= logging.WARNING)
