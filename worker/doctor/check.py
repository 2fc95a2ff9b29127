"""Checks, their verdicts, and how they run: each within a time limit, even when others fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sailq.shared.errors import SailqError

from ..runners.devices import CPU, EMULATOR

SECONDS = 20.0
"""The longest that a check may take. The connection's own timeouts end sooner when a server does not answer."""

State = Literal["ok", "warning", "wrong", "skipped"]
"""`warning`: it works, with a drawback. `skipped`: the check does not apply here or could not find out."""


@dataclass(frozen=True)
class Plan:
    """What this machine is used for: the input of all checks.

    Attributes:
        worker: whether the machine runs jobs; False: it only submits them.
        device: as `sailq worker --device` takes it.
        bmodel: the file to load; None: the one in the model's directory.
        metrics_port: the port of a worker's metrics; 0: none.
        root: the folder that holds /dev, /etc, /opt, /proc, /run and /sys.
    """

    redis_url: str
    model: str
    worker: bool
    device: str
    bmodel: Path | None
    metrics_port: int
    root: Path = Path("/")

    @property
    def on_tpu(self) -> bool:
        return self.device not in (CPU, EMULATOR)

    @property
    def tpu(self) -> int:
        """The number of the TPU in `device`; 0 if `device` has no number."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Verdict:
    """The result of a check. `what`: one sentence or a few words. `fix`: shell commands, one per line."""

    state: State
    what: str
    fix: str | None = None


def ok(what: str) -> Verdict:
    return Verdict("ok", what)


def warning(what: str, fix: str | None = None) -> Verdict:
    return Verdict("warning", what, fix)


def wrong(what: str, fix: str) -> Verdict:
    return Verdict("wrong", what, fix)


def skipped(why: str) -> Verdict:
    return Verdict("skipped", why)


@dataclass(frozen=True)
class Check:
    """One check of a subject.

    Attributes:
        needs: an earlier check that must have passed for this one to run.
        worker: whether the check is only for machines that run jobs.
    """

    subject: str
    name: str
    look: Callable[[Plan], Verdict]
    needs: str | None = None
    worker: bool = False


def run(checks: Iterable[Check], plan: Plan, seconds: float = SECONDS) -> Iterator[tuple[Check, Verdict]]:
    """Yields each check with its verdict, in order, as soon as it is known."""
    unmet: set[str] = set()
    for check in checks:
        if check.worker and not plan.worker:
            verdict = skipped("for a machine that runs jobs")
        elif check.needs in unmet:
            verdict = skipped(f"to be seen when the {check.needs} is fixed")
            unmet.add(check.name)
        else:
            verdict = _within(check, plan, seconds)
            if verdict.state == "wrong":
                unmet.add(check.name)
        yield check, verdict


def _within(check: Check, plan: Plan, seconds: float) -> Verdict:
    """Runs a check on its own thread and abandons the thread at the time limit: a dead network disk can block it
    forever."""
    found: list[Verdict] = []

    def look() -> None:
        try:
            found.append(check.look(plan))
        except SailqError as error:  # what an earlier check saw is no longer so
            found.append(wrong(str(error), "sailq doctor  # again"))
        except Exception as error:  # one check's failure is no other's
            what = f"This could not be found out: {type(error).__name__}: {error}"
            found.append(wrong(what, f"sailq doctor --json  # and tell sailq's makers what it says of {check.name}"))

    thread = threading.Thread(target=look, name=f"sailq-doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    return wrong(
        f"Not found out within {seconds:g} s: a disk or a device that this machine waits for does not answer.",
        "sudo dmesg --human --nopager | tail -n 50",
    )
