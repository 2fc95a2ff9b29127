"""sailq-tiny with fewer bits a weight."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

ROOT = Path(__file__).parents[1]


def int4_tiny(folder: Path) -> Path:
    """A new directory in `folder`: sailq-tiny with the weights of its w4f16 bmodel, and its nets for a CPU."""
    model = folder / "sailq-tiny-int4"
    _run("round_weights", "--model_path", resolve("sailq-tiny"), "--out", model, "--quantize", "w4f16")
    _run("export_onnx", "--dynamic", "--model_path", model, "--out", model / "onnx")
    return model


def w4_tiny(folder: Path) -> Path:
    """A new directory in `folder`: sailq-tiny with `export_onnx --quantize w4`'s nets."""
    model = folder / "sailq-tiny-w4"
    shutil.copytree(resolve("sailq-tiny"), model, ignore=shutil.ignore_patterns("onnx"))
    _run("export_onnx", "--dynamic", "--quantize", "w4", "--model_path", model, "--out", model / "onnx")
    return model


def _run(name: str, *options: object) -> None:
    command = [sys.executable, "-m", f"deploy.models.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
