"""Runs a batch at a terminal: shows progress while it runs and a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..captioning.batch import Captioning, Summary, number, seconds
from ..captioning.folders import LeftOut
from ..captioning.names import for_terminal
from ..captioning.rows import Row, failed, why
from ..captioning.thumbnails import Thumbnails
from ._progress import TOLD, Waiting, follow, tell_reasons

if TYPE_CHECKING:
    from ..client import Client


def run(
    client: Client,
    captioning: Captioning,
    *,
    report: Path | None,
    console: Console,
    each: Callable[[Row], None] | None = None,
    watch: Callable[[], Any] | None = None,
) -> Summary:
    """Runs the rest of a batch. Writes the report even if the run fails.

    Args:
        console: the console of stderr, for progress and notes.
        each: called with each new row; may print it to stdout.
        watch: called while waiting; may raise to end the batch.
    """
    from ..captioning.report import write_report

    def write() -> None:
        if report is not None:
            write_report(
                report,
                captioning.ordered(),
                captioning.summary(),
                thumbnails.by_index,
                model=captioning.model,
                questions={clip.index: clip.question for clip in captioning.clips},
            )

    thumbnails = Thumbnails()
    write()  # fails before the work if the path cannot be written
    waiting = Waiting(client, [captioning.model], console, watch)
    rows = captioning.run(client, seen=thumbnails.take if report else None, idle=waiting.check)
    shown = follow(
        rows, failed, label="captions", total=len(captioning.clips), earlier=list(captioning.rows.values()),
        # No progress bar if rows are printed to the same terminal.
        console=console, hidden=each is not None and sys.stdout.isatty(),
    )
    try:
        with closing(rows), closing(shown):
            for row in shown:
                if each is not None:
                    each(row)
    finally:
        if report is not None:
            with console.status("writing the report"):
                thumbnails.fill(captioning, client)
                write()
    return captioning.summary()


def tell_failures(captioning: Captioning, console: Console) -> None:
    """Prints why the first few clips failed. The rows have all errors."""
    tell_reasons([(row["source"], reason) for row in captioning.ordered() if (reason := why(row)) is not None], console)


def tell_left_out(left_out: Sequence[LeftOut], console: Console) -> None:
    """Prints what was left out of the folders: for each reason the number of files and the first few names."""
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(one.reason, []).append(for_terminal(one.path))
    for reason, paths in reasons.items():
        more = f" and {len(paths) - TOLD} more" if len(paths) > TOLD else ""
        told = f"left out {len(paths)} ({reason}): {', '.join(paths[:TOLD])}{more}"
        console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)


def closing_table(summary: Summary) -> Table:
    """A table of the batch's figures, for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    resumed = f" ({summary.resumed} by an earlier run)" if summary.resumed else ""
    table.add_row("clips", f"{summary.clips}{resumed}")
    table.add_row("failures", f"[red]{summary.failures}[/]" if summary.failures else "0")
    first = summary.first_token_median, summary.first_token_p90
    table.add_row("time to first token", f"{seconds(first[0])} median, {seconds(first[1])} p90")
    each, together = summary.stream_tokens_per_second, summary.tokens_per_second
    table.add_row("tokens/s", f"{number(each)} each, {number(together)} together")
    table.add_row("captions/s", number(summary.captions_per_second))
    table.add_row("wall time", seconds(summary.wall))
    return table
