"""The export of a checkpoint needs little memory: the peak depends on the largest tensor, not on the model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.real_sizes import MODEL, ROOT, write

FORMS = {"fp32": ((), 2.02), "w4": (("--dynamic", "--quantize", "w4"), 0.45)}
"""The exporter's options, and most bytes of the nets' weights as a multiple of the float16 checkpoint's: each parameter
once, and little else."""

# A process between the test and the export, because a new process counts its parent's memory as its own.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_a_2b_checkpoint_is_exported_in_little_memory() -> None:
    _check(MODEL, limit_gb=1.5, disk_gb=14)


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_a_qwen3_vl_4b_is_exported_in_little_memory() -> None:
    _check("qwen3-vl-4b", limit_gb=2, disk_gb=32)


def _check(model: str, limit_gb: float, disk_gb: float) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sailq-export-"))
    try:
        free = shutil.disk_usage(folder).free / 1e9
        assert free > disk_gb, f"this test needs {disk_gb} GB in {folder.parent}, where {free:.0f} GB are free"
        size = write(folder / "model", model)
        for form, (options, most) in FORMS.items():
            peak, weights, told = _export(folder, form, options)
            print(f"\nfigure: {form} export of a random {model} ({size / 1e9:.1f} GB, {told}")
            assert peak <= limit_gb
            assert weights < most * size
    finally:
        shutil.rmtree(folder)


def _export(folder: Path, form: str, options: Sequence[str]) -> tuple[float, int, str]:
    """Peak memory in GB, bytes of the nets' weights, and the figures in words."""
    model, out = folder / "model", folder / form
    command = [sys.executable, "-m", "deploy.models.export_onnx", "--model_path", str(model), "--out", str(out)]
    started = time.monotonic()
    measured = [sys.executable, "-c", MEASURE, *command, *options]
    done = subprocess.run(measured, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    code, peak = map(int, done.stdout.split())
    assert code == 0
    weights, nets = (out / "weights.bin").stat().st_size, len(list(out.glob("*.onnx")))
    shutil.rmtree(out)
    told = f"{nets} nets, {weights / 1e9:.1f} GB of weights): peak memory {peak / 1e6:.2f} GB, {seconds:.0f} s"
    return peak / 1e6, weights, told
