"""Threads that die in a process that the tests start fail a test, also at the end of the session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASE = """
import subprocess, sys, pytest

@pytest.fixture(scope="session")
def process():
    code = "import sys, threading; sys.stdin.read(); threading.Thread(target=lambda: 1 / int(sys.argv[1])).start()"
    with subprocess.Popen([sys.executable, "-c", code, "{divisor}"], stdin=subprocess.PIPE) as process:
        yield

def test_it(process):
    pass
"""


@pytest.mark.parametrize(("divisor", "code"), [(1, 0), (0, 1)])
def test_a_thread_that_dies_at_the_end_of_the_session(tmp_path: Path, divisor: int, code: int) -> None:
    (tmp_path / "test_case.py").write_text(CASE.format(divisor=divisor))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{paths}"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("ZeroDivisionError" in done.stdout) == (divisor == 0)
