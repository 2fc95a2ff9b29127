"""The export of a 2B-size checkpoint needs little memory: the peak depends on the largest layer, not on the model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.two_billion import ROOT, write

LIMIT_GB = 1.5
DISK_GB = 14
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


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_a_2b_checkpoint_is_exported_in_little_memory() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sailq-2b-"))
    try:
        free = shutil.disk_usage(folder).free / 1e9
        assert free > DISK_GB, f"this test needs {DISK_GB} GB in {folder.parent}, where {free:.0f} GB are free"
        size = write(folder / "model")
        for form, (options, most) in FORMS.items():
            _check(form, folder, size, options, most)
    finally:
        shutil.rmtree(folder)


def _check(form: str, folder: Path, size: int, options: Sequence[str], most: float) -> None:
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
    print(f"\nfigure: {form} export of a 2B-size checkpoint ({size / 1e9:.1f} GB, {nets} nets, {weights / 1e9:.1f} GB "
          f"of weights): peak memory {peak / 1e6:.2f} GB, {seconds:.0f} s")
    assert peak / 1e6 <= LIMIT_GB
    assert weights < most * size
