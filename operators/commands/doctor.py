"""`sailq doctor`: checks this machine, its server and its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sailq.shared.options import Json, MetricsPort, Model, RedisUrl, option
from sailq.shared.settings import WorkerOptions

if TYPE_CHECKING:
    from sailq.shared.checks import Check, Verdict


def doctor(
    redis_url: RedisUrl = None,
    model: Model = None,
    role: Annotated[
        Literal["worker", "producer"] | None,
        typer.Option(
            "--for", show_default="worker, if a worker's packages are installed",
            help="Role of this machine: run jobs, or only submit them.",
        ),
    ] = None,
    device: Annotated[str | None, option(WorkerOptions, "device", default="tpu:0 if there is one, else cpu")] = None,
    bmodel: Annotated[Path | None, option(WorkerOptions, "bmodel")] = None,
    metrics_port: MetricsPort = None,
    json: Json = False,
    root: Annotated[Path, typer.Option("--root", hidden=True, help="Folder of /dev, /proc and the like.")] = Path("/"),
) -> None:
    """Diagnose problems of this machine, its server and its model, and print the command that fixes each.

    Changes nothing on the machine or the server. Opens no TPU, so it can run
    beside a worker. Exit code: 0, no problem (warnings do not count); 1, a
    problem was found; 2, usage error.

    \b
    Examples:
      sailq doctor
      sailq doctor --for producer
      sailq doctor --model /data/models/qwen2-vl-7b --device tpu:0
      sailq doctor --json | jq -r '.[] | select(.state == "wrong") | .fix'
    """
    import sys
    from importlib.util import find_spec

    from sailq.shared.checks import Plan
    from sailq.shared.connection import without_password
    from sailq.shared.devices import check_device, has_tpu
    from sailq.shared.main import FAILURE
    from sailq.shared.settings import load_settings

    from ..doctor.checks import all_checks
    from ..doctor.run import run

    settings = load_settings(redis_url=redis_url, model=model, metrics_port=metrics_port)
    chosen = device or ("tpu:0" if has_tpu(root) else "cpu")
    check_device(chosen)
    plan = Plan(
        redis_url=settings.redis_url, model=settings.model, device=chosen, bmodel=bmodel,
        metrics_port=settings.metrics_port, root=root,
        worker=role == "worker" if role else find_spec("tokenizers") is not None,
    )
    states = set()

    def noted() -> Iterator[tuple[Check, Verdict]]:
        for check, verdict in run(all_checks(), plan):
            states.add(verdict.state)
            yield check, verdict

    if json:
        import json as json_module
        from dataclasses import asdict

        print(json_module.dumps([{"name": check.name, **asdict(verdict)} for check, verdict in noted()]), flush=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        from ..doctor.page import show

        does = f"a worker with {plan.model} on {plan.device}" if plan.worker else "a producer"
        show(Console(highlight=False), f"{does}, {without_password(plan.redis_url)}", noted())
    else:
        from ..doctor.page import lines

        for line in lines(noted()):
            print(line, flush=True)
    if "wrong" in states:
        raise typer.Exit(FAILURE)
