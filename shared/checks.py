"""What a check of `sailq doctor` gets and returns.

A check is a function that takes a `Plan` and returns a `Verdict`. It changes nothing on the machine or the server. A
package offers its checks, a sequence of `Check`, through the entry point group `sailq.checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .devices import CPU, EMULATOR

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
