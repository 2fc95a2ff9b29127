"""Shows the progress of a batch at a terminal, and why some of it failed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sailq.shared.workers import live_workers

from ..captioning.names import for_terminal

if TYPE_CHECKING:
    from ..client import Client

TOLD = 5
"""The most failures that are printed."""
R = TypeVar("R")


def follow(
    rows: Iterable[R],
    failed: Callable[[R], bool],
    *,
    label: str,
    total: int,
    earlier: Sequence[R],
    console: Console,
    hidden: bool = False,
) -> Generator[R, None, None]:
    """Yields the rows, and shows a progress bar meanwhile.

    Args:
        label: the word for what is counted.
        total: number of rows, with those of earlier runs.
        earlier: the rows of earlier runs.
        console: the console of stderr.
        hidden: whether to show no bar even on a terminal.
    """
    progress = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        redirect_stdout=False,
        transient=True,
    )
    failures = sum(map(failed, earlier))
    task = progress.add_task("", total=total, completed=len(earlier), failed="", rate="")
    with progress:
        for row in rows:
            failures += failed(row)
            speed = progress.tasks[task].speed
            progress.update(
                task,
                advance=1,
                failed=f"[red]{failures} failed[/]" if failures else "",
                rate=f"{speed:.1f}/s" if speed else "",
            )
            yield row


class Waiting:
    """Prints a note each time the last worker of one of the models disappears."""

    def __init__(
        self, client: Client, models: Sequence[str], console: Console, watch: Callable[[], Any] | None = None
    ) -> None:
        """`watch`: called while waiting; may raise to end the batch."""
        self._connection = client.connection
        self._models = models
        self._console = console
        self._watch = watch
        self._told = list[str]()

    def check(self) -> None:
        if self._watch is not None:
            self._watch()
        served = {name for worker in live_workers(self._connection) for name in worker.names}
        missing = [model for model in self._models if model not in served]
        if new := [model for model in missing if model not in self._told]:
            with suppress(OSError):  # a closed terminal must not end the batch
                names = ", ".join(map(for_terminal, new))
                self._console.print(f"no worker serves {names} now; waiting", style="yellow", highlight=False)
        self._told = missing


def tell_reasons(reasons: Sequence[tuple[str, str]], console: Console) -> None:
    """Prints why the first few items failed: (name, reason) of each."""
    for name, reason in reasons[:TOLD]:
        told = reason if reason.startswith(name) else f"{name}: {reason}"
        console.print(for_terminal(told), style="red", markup=False, highlight=False, soft_wrap=True)
    if len(reasons) > TOLD:
        console.print(f"and {len(reasons) - TOLD} more", style="red")
