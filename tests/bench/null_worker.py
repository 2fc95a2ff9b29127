"""`sailq worker` on a null runner, with a record of where its scheduler's time went.

    python tests/bench/null_worker.py --redis-url URL --slots 8 --decode-ms 98 --prefill-ms 210 --record steps.npy

Serves until SIGTERM, and then writes one row for each step of the scheduler: float64 [steps, 5], when it ended, its
seconds, the device's of these, answers in their slots, prefills in it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from null_runner import NullRunner, Timing
from sailq.shared.settings import load_settings
from sailq.worker import serve as serving
from sailq.worker.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.prompt import Prompter
from sailq.worker.scheduler import Scheduler


class RecordingScheduler(Scheduler):
    """Keeps a row for each step."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._device = engine
        self.rows: list[tuple[float, float, float, int, int]] = []

    def step(self) -> None:
        began, device, running = time.monotonic(), self._device.device_seconds, self.running
        super().step()
        now = time.monotonic()
        self.rows.append(
            (now, now - began, self._device.device_seconds - device, self.running, int(self.running > running))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url")
    parser.add_argument("--slots", type=int, default=8)
    for call in ("vision", "prefill", "decode"):
        parser.add_argument(f"--{call}-ms", type=float, default=0.0, help="how long the device would take")
    parser.add_argument("--record", type=Path, help="file for the steps")
    given = parser.parse_args()
    timing = Timing(given.vision_ms / 1000, given.prefill_ms / 1000, given.decode_ms / 1000)
    schedulers: list[RecordingScheduler] = []

    def load(model: Path) -> Engine:
        spec = ModelSpec.load(model)
        return Engine(spec, NullRunner(spec, given.slots, timing), Prompter(spec))

    def schedule(engine: Engine) -> RecordingScheduler:
        schedulers.append(RecordingScheduler(engine))
        return schedulers[0]

    serving.Scheduler = schedule  # type: ignore[assignment, misc]
    serving.serve(load_settings(redis_url=given.redis_url), load)
    if given.record:
        np.save(given.record, np.array(schedulers[0].rows))


if __name__ == "__main__":
    main()
