"""`sailq doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sailq.shared.options import Json, Model, RedisUrl

if TYPE_CHECKING:
    from ..doctor.check import Check, Verdict


def doctor(
    redis_url: RedisUrl = None,
    model: Model = None,
    role: Annotated[
        Literal["worker", "producer"] | None,
        typer.Option(
            "--for", show_default="worker, where a worker's packages are installed",
            help="What this machine is to do: run jobs, or submit them alone.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="cpu|tpu:N|emulator", show_default="tpu:0, where there is one, else cpu",
            help="What is to run the model.",
        ),
    ] = None,
    bmodel: Annotated[
        Path | None,
        typer.Option("--bmodel", show_default="the one in the model's directory", help="What to load on a TPU."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65_535, envvar="SAILQ_METRICS_PORT", metavar="PORT", show_default="none",
            help="Where a worker is to show its metrics.",
        ),
    ] = None,
    json: Json = False,
    root: Annotated[Path, typer.Option("--root", hidden=True, help="Where /dev, /proc and the like lie.")] = Path("/"),
) -> None:
    """Say what is wrong with this machine, its server or its model, and which command fixes it.

    Changes nothing, here or on the server, and opens no TPU: it may be asked
    while a worker runs. Exit code: 0, nothing is wrong; 1, something is; 2, a
    usage error. Warnings do not count.

    \b
    Examples:
      sailq doctor
      sailq doctor --for producer
      sailq doctor --model /data/models/qwen2-vl-7b --device tpu:0
      sailq doctor --json | jq -r '.[] | select(.state == "wrong") | .fix'
    """
    import sys
    from importlib.util import find_spec

    from sailq.shared.connection import without_password
    from sailq.shared.main import FAILURE
    from sailq.shared.settings import load_settings

    from ..doctor.check import Plan, run
    from ..doctor.checks import CHECKS
    from ..doctor.device import has_tpu
    from ..runners.devices import check_device

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
        for check, verdict in run(CHECKS, plan):
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
