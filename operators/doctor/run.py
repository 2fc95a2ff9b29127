"""Collects the checks, and runs them: each within a time limit, even when others fail."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from sailq.shared.checks import Check, Plan, Verdict, skipped, wrong
from sailq.shared.errors import SailqError

SECONDS = 20.0
"""The longest that a check may take. The connection's own timeouts end sooner when a server does not answer."""


def run(checks: Iterable[Check], plan: Plan, seconds: float = SECONDS) -> Iterator[tuple[Check, Verdict]]:
    """Yields each check with its verdict, in order, as soon as it is known."""
    unmet: dict[str, str] = {}  # by a check's name: the check that must be fixed for it
    for check in checks:
        if check.worker and not plan.worker:
            verdict = skipped("for a machine that runs jobs")
        elif check.needs is not None and check.needs in unmet:
            unmet[check.name] = unmet[check.needs]
            verdict = skipped(f"not checked until the {unmet[check.name]} is fixed")
        else:
            verdict = _within(check, plan, seconds)
            if verdict.state == "wrong":
                unmet[check.name] = check.name
        yield check, verdict


def _within(check: Check, plan: Plan, seconds: float) -> Verdict:
    """Runs a check on its own thread and abandons the thread at the time limit: a dead network disk can block it
    forever."""
    found: list[Verdict] = []

    def look() -> None:
        try:
            found.append(check.look(plan))
        except SailqError as error:  # the result of an earlier check is outdated
            found.append(wrong(str(error), "sailq doctor  # run it again"))
        except Exception as error:  # the other checks still run
            what = f"This check failed: {type(error).__name__}: {error}"
            found.append(wrong(what, f"sailq doctor --json  # and report what it prints for {check.name} as a bug"))

    thread = threading.Thread(target=look, name=f"sailq-doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    return wrong(
        f"The check did not end within {seconds:g} s: a disk or a device does not answer.",
        "sudo dmesg --human --nopager | tail -n 50",
    )
