"""Compiles models for the emulator."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

ROOT = Path(__file__).parents[2]


def compile_(*options: str, model: Path | None = None) -> Path:
    """Compiles a checkpoint, or else sailq-tiny, with these options of compile.sh; what is there, or is being made, is
    not made again."""
    command = [str(ROOT / "deploy/models/compile.sh"), "--model_path", str(model or resolve("sailq-tiny")),
               "--out", str(ROOT / "models/BM1684X"), "--jobs", "2", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])
