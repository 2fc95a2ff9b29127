"""sailq-tiny with fewer bits a weight."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from deploy.models.round_weights import SCHEMES, rounded
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


def int8_vision_tiny(folder: Path) -> Path:
    """The same with all of the ViT's matrices in 8 bits, and one scale for each row. That is coarser than a bmodel's
    groups of 64: most rows of this small ViT do not divide into these, so its bmodel has them in half precision."""
    model = folder / "sailq-tiny-vit8"
    shutil.copytree(resolve("sailq-tiny"), model, ignore=shutil.ignore_patterns("onnx"))
    weights = load_file(model / "model.safetensors")
    matrices = {name: weight for name, weight in weights.items() if "visual." in name and weight.ndim > 1}
    assert matrices
    for name, weight in matrices.items():
        rows = weight.reshape(len(weight), -1).astype(np.float32)
        values = rounded(rows, SCHEMES["w8f16"], rows.shape[1])
        assert not np.array_equal(values, rows)
        weights[name] = values.reshape(weight.shape).astype(np.float16)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    _run("export_onnx", "--dynamic", "--model_path", model, "--out", model / "onnx")
    return model


def _run(command: str, *options: object) -> None:
    line = [sys.executable, "-m", f"deploy.models.{command}", *map(str, options)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
