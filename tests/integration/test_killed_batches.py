"""A batch of 900 clips is killed repeatedly while a second run tries to write to the same file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import rows, start
from farm import NullWorker

CLIPS, KILLS = 900, 20
SECONDS = 600.0
"""Within this a run makes progress, however busy the machine is."""


@pytest.fixture
def cam(tmp_path: Path) -> Path:
    """A folder of `CLIPS` clips of four frames, each different, a tenth of them in a linked folder."""
    for folder in ("cam", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cam" / "linked").symlink_to(tmp_path / "elsewhere")
    for number in range(CLIPS):
        path = tmp_path / ("elsewhere" if number % 10 == 0 else "cam") / f"{number:03}.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (56, 56))
        for _ in range(4):
            writer.write(np.full((56, 56, 3), number % 250, np.uint8))
        writer.release()
    return tmp_path / "cam"


def whole(out: Path) -> dict[str, str]:
    """The job that answered each clip, from the whole lines; each clip has one row without error at most."""
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    answered = [row for row in map(json.loads, lines) if row["error"] is None]
    found = {row["source"]: row["job"] for row in answered}
    assert len(found) == len(answered)
    return found


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_900_clips_killed_20_times_by_two_runs_at_once(
    redis_url: str, start_null: Callable[..., NullWorker], cam: Path, tmp_path: Path
) -> None:
    start_null("--slots", "1", "--decode-ms", "10")
    out, seed = tmp_path / "out.jsonl", int(os.environ.get("SEED", "11"))
    chance = random.Random(seed)
    command = ["caption", cam, "--out", out, "--nframes", 4, "--max-new-tokens", 2, "--window", 8]
    refused, before = 0, dict[str, str]()
    for number in range(KILLS):
        enough = len(before) + 1 + chance.randrange(30)
        runs = [start(*command, url=redis_url)]
        try:
            if number % 4 == 0:  # the second run starts while the first one works
                wait(runs, out, len(before) + 1)
                runs[0].send_signal(signal.SIGSTOP)
                runs.append(start(*command, url=redis_url))
                assert runs[1].wait(SECONDS) == 2
                runs[0].send_signal(signal.SIGCONT)
            else:  # both at once
                runs.append(start(*command, url=redis_url))
            wait(runs, out, enough)
            if chance.random() < 0.4:  # SIGINT makes a run sort the file; it is killed meanwhile
                for run in runs:
                    run.send_signal(signal.SIGINT)
            time.sleep(chance.random() * 0.1)
        finally:
            for run in runs:
                run.kill()
        for run in runs:
            _, errors = run.communicate()
            if run.returncode == 2:
                assert errors.startswith("sailq: Another run is writing to") and len(errors.splitlines()) == 1, errors
                refused += 1
        assert any(run.returncode in (-signal.SIGKILL, 130) for run in runs)
        now = whole(out)
        assert now.items() >= before.items()  # no row is lost
        before = now
    last = start(*command, url=redis_url)
    _, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    written = rows(out)
    assert [row["index"] for row in written] == list(range(CLIPS))
    assert whole(out).items() >= before.items() and len(whole(out)) == CLIPS
    assert refused >= KILLS // 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    print(f"figure: {CLIPS} clips, {KILLS} kills (seed {seed}), {refused} second runs refused: {len(written)} rows, "
          f"{len(before)} of them before the last run, none lost, none twice")


def wait(runs: list[subprocess.Popen[str]], out: Path, count: int) -> None:
    """Until so many clips are answered; fails when no run is left that could answer more."""
    until = time.monotonic() + SECONDS
    while len(whole(out)) < count:
        if time.monotonic() > until or all(run.poll() is not None for run in runs):
            for run in runs:
                run.kill()
            pytest.fail("\n".join(run.communicate()[1] for run in runs))
        time.sleep(0.05)
