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
from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine
from tests.bench.captions import THREADS, Caption, answer, caption
from tests.bench.turns import RUNS, TURN_SECONDS, Way, runs, spread

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
SLOTS, TOKENS = 8, 60
DISK_GB, MOST_GB = 18, 3.0
LEAST = {"one answer, decoding": 3.0, "8 answers, decoding": 2.0, "8 captions, with their clips and prompts": 1.5}
"""Tokens/s as multiples of float32's: the median of all runs."""


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Path]]:
    """Directories of one checkpoint, with float32 and with 4-bit nets."""
    from tests.bench.real_sizes import export, write

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
    decoding, captions = (
        runs({name: Way(load, (path,)) for name, path in models.items()}, count)
        for load, count in ((_decoding, 2 * RUNS), (_captions, RUNS))
    )
    rows, held = [], {}
    for (load, least), found in zip(LEAST.items(), (decoding[::2], decoding[1::2], captions), strict=True):
        rates = {name: [run[name].made / run[name].seconds for run in found] for name in models}
        ratios = [w4 / fp32 for w4, fp32 in zip(rates["w4"], rates["fp32"], strict=True)]
        rows.append((load, spread(rates["fp32"]), spread(rates["w4"]), spread(ratios), f"≥ {least}"))
        held[load] = statistics.median(ratios) >= least
    table(
        f"Clips of 2 frames of 140 × 224, a random Qwen2-VL-2B, {THREADS} threads, median (min–max) of {RUNS} runs of "
        f"{TOKENS} tokens an answer, both by turns of {TURN_SECONDS:g} s",
        ("load", "fp32, tokens/s", "w4, tokens/s", "w4 against fp32", "bound"), rows,
    )
    assert held == dict.fromkeys(LEAST, True)


def _decoding(model: Path) -> Callable[[int], int]:
    """Even runs: a step for one answer, again and again. Odd runs: for an answer in each of 8 slots. All have a clip.
    Returns the tokens."""
    engine = _engine(model)
    options = GenerationOptions(max_new_tokens=2 * RUNS * TOKENS + 1)
    answers = [
        engine.start(engine.prepare(one.messages, one.frames, options), options, slot)
        for slot, one in enumerate(_work())
    ]

    def run(number: int) -> int:
        chosen = answers if number % 2 else answers[:1]
        for _ in range(TOKENS):
            engine.step(chosen)
        return TOKENS * len(chosen)

    return run


def _captions(model: Path) -> Callable[[int], int]:
    """Eight captions, with their clips and prompts, in 8 slots. Returns the tokens of all answers."""
    engine, work = _engine(model), _work()
    answer(engine, work[:1])  # what is loaded or allocated once
    return lambda number: sum(map(len, answer(engine, work)))


def _engine(model: Path) -> Engine:
    return Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)


def _work() -> list[Caption]:
    random = np.random.default_rng(0)
    return [caption(random, TOKENS) for _ in range(SLOTS)]


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
