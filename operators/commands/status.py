"""`sailq status`: shows workers, queues and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared.options import Json, RedisUrl

if TYPE_CHECKING:
    from rich.console import Group

    from ..fleet import MemoryKind, Snapshot

_WATCH_SECONDS = 2.0


def status(
    memory: Annotated[
        bool, typer.Option("--memory", help="Also show which keys use the server's memory (samples 20,000 keys).")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every 2 s until Ctrl-C.")] = False,
    json: Json = False,
    redis_url: RedisUrl = None,
) -> None:
    """Show the workers, the queues and the server's memory. Changes nothing.

    With --json and --watch, prints one JSON object per line.

    \b
    Examples:
      sailq status
      sailq status --watch
      sailq status --json | jq '.queues[].waiting'
    """
    from sailq.shared import terminal

    with terminal.command(json):
        import time
        from dataclasses import asdict

        from rich.console import Console
        from rich.live import Live

        from sailq.shared.connection import connect
        from sailq.shared.settings import load_settings

        from ..fleet import Fleet

        with connect(load_settings(redis_url=redis_url).redis_url) as connection:
            fleet = Fleet(connection)

            def look() -> tuple[Snapshot, list[MemoryKind] | None]:
                return fleet.snapshot(), fleet.memory_by_kind() if memory else None

            if json:
                while True:
                    snapshot, kinds = look()
                    said: dict[str, Any] = asdict(snapshot)
                    if kinds is not None:
                        said["memory_by_kind"] = [asdict(kind) for kind in kinds]
                    terminal.print_json(said)
                    if not watch:
                        return
                    time.sleep(_WATCH_SECONDS)
            if not watch:
                Console().print(_page(*look()))
                return
            with Live(_page(*look()), screen=True) as live:
                while True:
                    time.sleep(_WATCH_SECONDS)
                    live.update(_page(*look()), refresh=True)


def _page(snapshot: Snapshot, kinds: list[MemoryKind] | None) -> Group:
    from rich.console import Group
    from rich.filesize import decimal
    from rich.table import Table

    workers = Table(title="workers", title_justify="left")
    for name in ("worker", "model", "version", "device"):
        workers.add_column(name, overflow="fold")
    for name in ("slots", "tokens/s", "beat", "up"):
        workers.add_column(name, justify="right")
    for worker in snapshot.workers:
        workers.add_row(
            worker.name,
            f"{worker.model} ({worker.alias})" if worker.alias else worker.model,
            worker.model_version,
            worker.device,
            f"{worker.running} of {worker.slots}",
            f"{worker.tokens_per_second:.0f}",
            f"{worker.beat_age:.0f} s",
            _span(worker.uptime),
        )
    queues = Table("model", title="queues", title_justify="left")
    for name in ("waiting", "oldest", "after another", "started", "failed"):
        queues.add_column(name, justify="right")
    for queue in snapshot.queues:
        oldest = "" if queue.oldest_wait is None else _span(queue.oldest_wait)
        failures = f"[red]{queue.failed}[/]" if queue.failed else "0"
        queues.add_row(queue.model, str(queue.waiting), oldest, str(queue.deferred), str(queue.started), failures)
    limit = f" of {decimal(snapshot.memory_limit)}" if snapshot.memory_limit else ""
    shown: list[Any] = [  # the workers last: hundreds of them may not fit the screen
        f"{snapshot.conversations} conversations, {decimal(snapshot.memory_used)}{limit} in {snapshot.server}",
        queues if snapshot.queues else "no queues",
    ]
    if kinds is not None:
        held = Table("keys", title="memory", title_justify="left")
        held.add_column("count", justify="right")
        held.add_column("size", justify="right")
        for kind in kinds:
            held.add_row(kind.kind, str(kind.keys), decimal(kind.bytes))
        shown.append(held)
    shown.append(workers if snapshot.workers else "[yellow]no workers[/]")
    return Group(*shown)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
