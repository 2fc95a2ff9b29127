"""A check, what it finds, and how it is run: within a time limit, and whatever becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sailq.shared.errors import SailqError

from ..runners.devices import CPU, EMULATOR

SECONDS = 20.0
"""What a check may take. A server that does not answer is given up earlier, by the connection's own limits."""

State = Literal["ok", "warning", "wrong", "skipped"]
"""`warning`: it works, and may cost something. `skipped`: does not apply here, or cannot be known."""


@dataclass(frozen=True)
class Plan:
    """What this machine is to do.

    Attributes:
        worker: run jobs; else submit them alone.
        device: as `sailq worker --device` takes it.
        bmodel: None: the one in the model's directory.
        metrics_port: where a worker shows its metrics; 0: nowhere.
        root: where /dev, /etc, /opt, /proc, /run and /sys lie.
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
        """The chip's number; 0 where there is none."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Verdict:
    """What a check finds: `what` is one sentence or a few words, `fix` commands for a shell, one a line."""

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
        needs: a check before it without which it can find nothing.
        worker: only for a machine that runs jobs.
    """

    subject: str
    name: str
    look: Callable[[Plan], Verdict]
    needs: str | None = None
    worker: bool = False


def run(checks: Iterable[Check], plan: Plan, seconds: float = SECONDS) -> Iterator[tuple[Check, Verdict]]:
    """Each check's verdict, in order, as soon as it is there."""
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
    """On a thread of its own, which is left behind when it does not end: a dead network disk can hold it for ever."""
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
