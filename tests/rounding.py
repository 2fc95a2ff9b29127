"""round_weights.py in this process, and sailq-tiny as it leaves it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

_MODELS = Path(__file__).parents[1] / "deploy/models"
sys.path.insert(0, str(_MODELS))
rounding = importlib.import_module("round_weights")


def int4_tiny(folder: Path) -> Path:
    """A new directory in `folder`: sailq-tiny with the weights of its w4f16 bmodel, and its nets for a CPU."""
    model = folder / "sailq-tiny-int4"
    for script, *options in (
        ("round_weights.py", "--model_path", resolve("sailq-tiny"), "--out", model, "--quantize", "w4f16"),
        ("export_onnx.py", "--dynamic", "--model_path", model, "--out", model / "onnx"),
    ):
        command = [sys.executable, str(_MODELS / script), *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return model
