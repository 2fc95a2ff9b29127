"""Shared by the tests of the TPU's path: bmodels of sailq-tiny, compiled on first use, and its samples."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import families
import pytest
from asking import prepared
from compiling import ROOT, compile_
from tiny import COMPILED, GREEDY

from sailq.producer.samples import TASKS, write_samples
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.model_files.model_paths import resolve

SEED = 7

Compile = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the TPU tests with all their prompts: make test-tpu-full")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.tpu)
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def environment() -> Path:
    """The compiler's environment, which the emulator's libraries are in too; a minute where it is not there yet.

    Parallel test processes compile everything before their first test, from both ends of the list: the emulator's
    threads use every core, and the compiler beside them takes longer.
    """
    place = subprocess.check_output([ROOT / "deploy/models/tpu_env.sh"], text=True).strip()
    os.environ["TPU_ENV"] = place  # workers find it from any working directory
    if process := os.environ.get("PYTEST_XDIST_WORKER"):
        jobs = [partial(compile_, *options) for options in COMPILED]
        jobs += [partial(families.compiled, *one) for one in families.CHECKED]
        for job in jobs if process == "gw0" else jobs[::-1]:
            job()
    return Path(place)


@pytest.fixture(scope="session")
def compiled() -> Compile:
    return compile_


@pytest.fixture(scope="session")
def cpu() -> Engine:
    return Engine.load(resolve("sailq-tiny"), slots=1, threads=1)


@pytest.fixture(scope="session")
def samples(cpu: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedPrompt]:
    """40 held-out samples as an engine takes them, one of each task after the other."""
    folder = tmp_path_factory.mktemp("samples")
    rows = list(write_samples(SEED, 40, folder))
    assert [row["task"] for row in rows[: len(TASKS)]] == list(TASKS)
    return [prepared(cpu, row, folder, GREEDY) for row in rows]
