"""`sailq worker` on a null runner, with a record of where its scheduler's time went.

    python tests/null_worker.py --redis-url URL --slots 8 --decode-ms 98 --prefill-ms 210 --record steps.npy

Serves until SIGTERM, and then writes one row for each step of the scheduler: float64 [steps, 5], when it ended, its
seconds, the device's of these, answers in their slots, prefills in it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from null_runner import NullRunner, Timing

from sailq.shared.errors import SailqError
from sailq.shared.settings import load_settings
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import VISION_CACHE_BYTES, Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import fingerprint
from sailq.worker.process import serve as serving
from sailq.worker.queue.job_runner import JobRunner
from sailq.worker.queue.job_store import JobStore

STEPS: dict[str, tuple[type[Any], str, bool]] = {
    "claimed": (JobStore, "claim", True),
    "begun": (JobRunner, "run", False),
    "answered": (JobStore, "finish", False),
    "finished": (JobStore, "finish", True),
}
"""Whose method, and whether the end comes after it."""


class RecordingScheduler(Scheduler):
    """Keeps a row for each step."""

    def __init__(self, engine: Engine, *rest: Any) -> None:
        super().__init__(engine, *rest)
        self._device = engine
        self.rows: list[tuple[float, float, float, int, int]] = []

    def step(self) -> None:
        began, device, running = time.monotonic(), self._device.device_seconds, self.running
        super().step()
        now = time.monotonic()
        self.rows.append(
            (now, now - began, self._device.device_seconds - device, self.running, int(self.running > running))
        )


@cache
def loaded(model: Path) -> tuple[ModelSpec, ChatTokenizer]:
    """What takes longest to load; a process that forks workers does it once."""
    spec = ModelSpec.load(model)
    return spec, ChatTokenizer(spec)


def die_at(step: str) -> None:
    """Makes this process kill itself at a step of its jobs' ways."""
    step, _, call = step.partition(":")
    owner, name, after = STEPS[step]
    calls, wrapped = count(1), getattr(owner, name)

    def die(*args: Any, **kwargs: Any) -> Any:
        value = wrapped(*args, **kwargs) if after else None
        if (value or not after) and next(calls) == int(call or 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return value if after else wrapped(*args, **kwargs)

    setattr(owner, name, die)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url")
    parser.add_argument("--slots", type=int, default=8)
    for call in ("vision", "prefill", "decode"):
        parser.add_argument(f"--{call}-ms", type=float, default=0.0, help="how long the device would take")
    parser.add_argument("--filling-ms", type=float, help="how long a decode takes while a slot is free")
    parser.add_argument("--hang-at", type=int, default=0, metavar="N", help="the Nth decode never returns")
    parser.add_argument("--fail-at", type=int, default=0, metavar="N", help="the device fails at the Nth decode")
    parser.add_argument("--die-at", metavar="STEP[:N]", help=f"SIGKILL at the Nth time of {', '.join(STEPS)}")
    for end in ("failing", "deadly"):
        parser.add_argument(f"--{end}-prompt", type=float, default=math.inf, metavar="TOKENS", help="see NullRunner")
    parser.add_argument("--flaky", action="store_true", help="other tokens each time")
    parser.add_argument("--script", type=Path, help=".npy file with the tokens of each answer, for NullRunner")
    parser.add_argument("--device-timeout", type=float, default=120.0)
    parser.add_argument("--drain-seconds", type=float, default=60.0)
    parser.add_argument("--vision-cache", type=int, default=VISION_CACHE_BYTES, help="bytes")
    parser.add_argument("--record", type=Path, help="file for the steps")
    given = parser.parse_args(arguments)
    if given.die_at:
        die_at(given.die_at)
    timing = Timing(
        given.vision_ms / 1000, given.prefill_ms / 1000, given.decode_ms / 1000,
        None if given.filling_ms is None else given.filling_ms / 1000,
    )
    schedulers: list[RecordingScheduler] = []

    def load(model: Path) -> Engine:
        spec, chat_tokenizer = loaded(model)
        runner = NullRunner(
            spec, given.slots, timing, hang_at=given.hang_at, fail_at=given.fail_at, flaky=given.flaky,
            failing_prompt=given.failing_prompt, deadly_prompt=given.deadly_prompt,
            script=np.load(given.script) if given.script else (),
        )
        return Engine(spec, runner, chat_tokenizer, given.vision_cache, version=fingerprint(model))

    def schedule(*arguments: Any) -> RecordingScheduler:
        schedulers.append(RecordingScheduler(*arguments))
        return schedulers[0]

    if given.record:
        serving.Scheduler = schedule  # type: ignore[assignment, misc]
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    serving.serve(
        load_settings(redis_url=given.redis_url), load,
        drain_seconds=given.drain_seconds, device_timeout=given.device_timeout,
    )
    if given.record:
        np.save(given.record, np.array(schedulers[0].rows))


if __name__ == "__main__":
    try:
        main()
    except SailqError as error:
        sys.exit(str(error))
