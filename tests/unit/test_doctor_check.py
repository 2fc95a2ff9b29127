"""How `sailq doctor` runs its checks, and what a terminal shows."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from rich.console import Console

from sailq.operators.doctor.checks import all_checks
from sailq.operators.doctor.page import lines, show
from sailq.operators.doctor.run import run
from sailq.shared.checks import Check, Plan, Verdict, ok, skipped, wrong

PLAN = Plan(
    redis_url="redis://h/0", model="m", worker=True, device="cpu", bmodel=None, metrics_port=0, root=Path("/no/such")
)
LONG = "sudo " + "x" * 100


def hang(plan: Plan) -> Verdict:
    threading.Event().wait()
    return ok("never")


def fail(plan: Plan) -> Verdict:
    raise ZeroDivisionError("it has a bug")


def well(plan: Plan) -> Verdict:
    return ok("well")


def ill(plan: Plan) -> Verdict:
    return wrong("It is ill.", f"{LONG}\nsecond")


def test_a_check_that_hangs_or_fails_stops_no_other() -> None:
    checks = [Check("s", "hangs", hang), Check("s", "fails", fail), Check("s", "well", well)]
    hung, failed, fine = (verdict for _, verdict in run(checks, PLAN, seconds=0.1))
    assert hung.state == "wrong" and "within 0.1 s" in hung.what
    assert failed.state == "wrong" and "ZeroDivisionError: it has a bug" in failed.what and failed.fix
    assert fine == ok("well")


def test_checks_that_depend_on_a_failed_check_are_skipped() -> None:
    checks = [Check("s", "a", ill), Check("s", "b", fail, "a"), Check("s", "c", fail, "b"), Check("s", "d", well)]
    assert [verdict.state for _, verdict in run(checks, PLAN)] == ["wrong", "skipped", "skipped", "ok"]


def test_checks_run_after_the_checks_that_they_depend_on() -> None:
    checks = all_checks()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert all(check.needs in names[:place] for place, check in enumerate(checks) if check.needs)
    subjects = [check.subject for check in checks]
    assert subjects == sorted(subjects, key=subjects.index)


def test_a_terminal_shows_each_fix_in_one_piece_and_skipped_checks_together() -> None:
    terminal = io.StringIO()
    found = [(Check("s", "a", ill), ill(PLAN)), (Check("s", "b", well), skipped("no")),
             (Check("s", "c", well), skipped("no")), (Check("s", "[red]d", well), ok("\x1b[31m[bold]"))]
    show(Console(file=terminal, width=60), "title", found)
    shown = [line.strip() for line in terminal.getvalue().splitlines()]
    assert f"$ {LONG}" in shown and "$ second" in shown and "– b, c: no" in shown
    assert any(line.startswith("✓ [red]d") and line.endswith("�[31m[bold]") for line in shown)
    assert shown[-1] == "1 ok, 1 wrong, 2 skipped"


def test_a_pipe_gets_a_line_for_each() -> None:
    assert list(lines([(Check("s", "a", ill), ill(PLAN)), (Check("s", "b", well), ok("well"))])) == [
        f"wrong    a             It is ill. Fix: {LONG} && second",
        "ok       b             well",
    ]
