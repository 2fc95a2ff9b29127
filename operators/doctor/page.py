"""Prints the verdicts: grouped by subject on a terminal, one line each when piped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sailq.shared.checks import Check, Verdict
from sailq.shared.errors import quoted

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "wrong": ("✗", "red"), "skipped": ("–", "bright_black")}
_NAMES = 14
"""Columns: the longest check's name, and a space."""
_LEFT = 3 + 1 + _NAMES + 1

Found = Iterable[tuple[Check, Verdict]]


def lines(found: Found) -> Iterator[str]:
    """`wrong    clock          3 h behind the server's …. Fix: sudo timedatectl set-ntp true`."""
    for check, verdict in found:
        fix = f" Fix: {' && '.join(_commands(verdict))}" if verdict.fix else ""
        yield f"{verdict.state:<9}{check.name:<{_NAMES}}{quoted(verdict.what)}{fix}"


def show(console: Console, title: str, found: Found) -> None:
    """Prints the verdicts as they come. Checks that were skipped for the same reason share a line."""
    console.print(Text(title, style="bold"))
    subject, counts = "", Counter[str]()
    for _, group in groupby(found, _alike):
        several = list(group)
        check, verdict = several[0]
        if check.subject != subject:
            subject = check.subject
            console.print(Text(f"\n{subject}", style="bold"))
        console.print(_row([one.name for one, _ in several], verdict))
        for command in _commands(verdict):  # not wrapped, so that it can be copied
            console.print(Text(f"{' ' * _LEFT}$ {command}", style="cyan"), soft_wrap=True)
        counts[verdict.state] += len(several)
    said = [Text(f"{counts[state]} {state}", style=_MARKS[state][1]) for state in _MARKS if counts[state]]
    console.print(Text("\n") + Text(", ").join(said))


def _alike(one: tuple[Check, Verdict]) -> tuple[object, ...]:
    check, verdict = one
    return check.subject, verdict if verdict.state == "skipped" else check.name


def _row(names: list[str], verdict: Verdict) -> Table:
    mark, colour = _MARKS[verdict.state]
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=3, justify="right")
    quiet = colour if verdict.state == "skipped" else ""
    loud = f"bold {colour}" if verdict.state in ("warning", "wrong") else quiet
    if len(names) > 1:
        row.add_column(overflow="fold")
        row.add_row(Text(mark, style=colour), Text(f"{', '.join(names)}: {quoted(verdict.what)}", style=quiet))
        return row
    row.add_column(width=_NAMES)
    row.add_column(overflow="fold")
    row.add_row(Text(mark, style=colour), Text(names[0], style=loud), Text(quoted(verdict.what), style=quiet))
    return row


def _commands(verdict: Verdict) -> list[str]:
    return [quoted(line) for line in verdict.fix.splitlines()] if verdict.fix else []
