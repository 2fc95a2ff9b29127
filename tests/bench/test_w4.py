"""4-bit nets of a 2B-size model on 2 CPU cores: tokens/s against float32 nets, and a worker's memory."""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Table

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.worker.engine.engine import Engine
from tests.bench.captions import THREADS, answer, caption
from tests.bench.turns import RUNS, TURN_SECONDS, Way, runs, spread

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
SLOTS, TOKENS = 8, 60
DISK_GB, MOST_GB = 18, 3.0
LEAST = {"one stream": 3.0, "8 slots": 2.0}
"""Tokens/s as multiples of float32's: the median of all runs."""


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Path]]:
    """Directories of one checkpoint, with float32 and with 4-bit nets."""
    from tests.bench.two_billion import export, write

    folder = Path(tempfile.mkdtemp(prefix="sailq-2b-"))
    try:
        free = shutil.disk_usage(folder).free / 1e9
        assert free > DISK_GB, f"this test needs {DISK_GB} GB in {folder.parent}, where {free:.0f} GB are free"
        paths = {name: folder / f"random-2b-{name}" for name in ("fp32", "w4")}
        write(paths["fp32"])
        shutil.copytree(paths["fp32"], paths["w4"], ignore=shutil.ignore_patterns("*.safetensors*"))
        export(paths["fp32"], paths["w4"] / "onnx", "--quantize", "w4")
        export(paths["fp32"], paths["fp32"] / "onnx")
        yield paths
    finally:
        shutil.rmtree(folder)


def test_4_bit_weights_against_float32(models: dict[str, Path], table: Table) -> None:
    found = runs({name: Way(_streams, (path,)) for name, path in models.items()}, len(LEAST) * RUNS)
    rates = {
        (name, load): [run[name].made / run[name].seconds for run in found[first :: len(LEAST)]]
        for name in models for first, load in enumerate(LEAST)
    }
    ratios = {load: [w4 / fp32 for w4, fp32 in zip(rates["w4", load], rates["fp32", load], strict=True)]
              for load in LEAST}
    table(
        f"Clips of 2 frames of 140 × 224, answers of {TOKENS} tokens, a random Qwen2-VL-2B, {THREADS} threads, median "
        f"(min–max) of {RUNS} runs, both by turns of {TURN_SECONDS:g} s",
        ("load", "fp32, tokens/s", "w4, tokens/s", "w4 against fp32", "bound"),
        [(load, spread(rates["fp32", load]), spread(rates["w4", load]), spread(ratios[load]), f"≥ {LEAST[load]}")
         for load in LEAST],
    )
    for load in LEAST:
        print(f"figure: a 2B-size model, w4 against fp32, {load}: {spread(ratios[load])} ×")
    held = {load: statistics.median(ratios[load]) >= least for load, least in LEAST.items()}
    assert held == dict.fromkeys(LEAST, True)


def _streams(model: Path) -> Callable[[int], int]:
    """Even runs: one request. Odd runs: a request in each of 8 slots. Returns the tokens of all answers."""
    engine = Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)
    random = np.random.default_rng(0)
    work = [caption(random, TOKENS) for _ in range(SLOTS)]
    answer(engine, [caption(random, 2)])  # what is loaded or allocated once

    def run(number: int) -> int:
        chosen = work if number % len(LEAST) else work[:1]
        return sum(map(len, answer(engine, chosen)))

    return run


def test_a_worker_with_4_bit_weights_needs_less_than_3_gb(
    models: dict[str, Path], start_worker: Callable[..., ManagedProcess], redis_url: str
) -> None:
    """Its peak, with 8 slots that have each answered about a clip of 8 frames of 280 × 448: 640 vision tokens."""
    model, random = models["w4"], np.random.default_rng(0)
    work = [caption(random, TOKENS, 8, (280, 448)) for _ in range(SLOTS)]
    worker = start_worker("--model", model, "--slots", SLOTS, "--threads", THREADS, seconds=1200)
    with Client(redis_url) as client:
        handles = [client.submit_prepared(one.prepared, model=model.name, options=one.options) for one in work]
        for handle in handles:
            result = client.wait(handle.job, timeout=3600)
            assert result.error is None and result.usage.completion_tokens == TOKENS
    status = Path(f"/proc/{worker.pid}/status").read_text()
    worker.stop()
    peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e9
    print(f"figure: a worker with a 2B-size model, w4, {SLOTS} slots: peak memory {peak:.2f} GB")
    assert peak <= MOST_GB
