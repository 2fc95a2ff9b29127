"""sailq-tiny as deploy.models.round_weights leaves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

ROOT = Path(__file__).parents[1]


def int4_tiny(folder: Path) -> Path:
    """A new directory in `folder`: sailq-tiny with the weights of its w4f16 bmodel, and its nets for a CPU."""
    model = folder / "sailq-tiny-int4"
    for name, *options in (
        ("round_weights", "--model_path", resolve("sailq-tiny"), "--out", model, "--quantize", "w4f16"),
        ("export_onnx", "--dynamic", "--model_path", model, "--out", model / "onnx"),
    ):
        command = [sys.executable, "-m", f"deploy.models.{name}", *map(str, options)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return model
