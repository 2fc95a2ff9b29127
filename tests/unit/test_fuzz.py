"""A short run of `make fuzz`: readers of foreign data refuse it with typed errors, quickly, and in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz" / "fuzz.py"


@pytest.mark.proof
def test_no_input_breaks_what_reads_it() -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--inputs", "100000", "--seed", "0"], capture_output=True, text=True, timeout=240
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
