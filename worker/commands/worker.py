"""`sailq worker`. The model's libraries are imported when the command runs, not when its help is shown."""

from __future__ import annotations

from typing import Any

from sailq.shared.options import Alias, MetricsAddress, MetricsPort, Model, RedisUrl, takes
from sailq.shared.settings import WorkerOptions, load_settings
from sailq.shared.validation import parse


@takes(options=WorkerOptions)
def worker(
    redis_url: RedisUrl = None,
    model: Model = None,
    alias: Alias = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = None,
    *,
    options: dict[str, Any],
) -> None:
    """Load a model once and answer its jobs until stopped.

    SIGTERM or Ctrl-C lets the running jobs finish. A second one, or the end of
    --drain-seconds, puts them back on the queue for other workers.

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
    from sailq.shared.devices import EMULATOR, check_device

    how = parse(WorkerOptions, options)
    check_device(how.device)
    settings = load_settings(
        redis_url=redis_url, model=model, alias=alias, metrics_port=metrics_port, metrics_address=metrics_address
    )
    _log_to_stderr()

    from functools import partial

    from ..engine.engine import Engine
    from ..process.serve import serve

    load = partial(
        Engine.load, device=how.device, bmodel=how.bmodel, slots=how.slots, threads=how.threads,
        vision_cache_bytes=how.vision_cache << 20,
    )
    timeout = how.device_timeout or (3600.0 if how.device == EMULATOR else 120.0)
    serve(settings, load, drain_seconds=how.drain_seconds, device_timeout=timeout)


def _log_to_stderr() -> None:
    import logging
    import os

    stderr = os.fstat(2)
    # The journal adds the time to each line.
    journal = os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    logging.basicConfig(
        format=("" if journal else "%(asctime)s ") + "%(levelname)-7s %(name)s: %(message)s", level=logging.WARNING
    )
    logging.getLogger("sailq").setLevel(logging.INFO)
    # RQ logs each finished job twice at INFO.
    logging.getLogger("rq.worker").addFilter(lambda record: record.levelno >= logging.WARNING)
