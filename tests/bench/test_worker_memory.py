"""The memory of a CPU worker, against what `sailq doctor` expects for its model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Table

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.shared.settings import model_name
from sailq.worker.doctor.memory import needed
from sailq.worker.engine.engine import VISION_CACHE_BYTES
from sailq.worker.model_files.model_paths import resolve

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
MB = 10**6


def test_a_workers_memory(
    model: Path, start_worker: Callable[..., ManagedProcess], redis_url: str, table: Table
) -> None:
    """Its peak, with 8 slots that have each answered 300 tokens of prompt with 100. Without a vision cache, which fills
    too slowly to be measured. PyTorch is installed here; a worker that imported it would take 240 MB more."""
    rows, shares = [], {}
    for name in ("sailq-tiny", str(model)):
        worker = start_worker("--model", name, "--vision-cache", 0, seconds=300)
        with Client(redis_url) as client:
            question = [{"role": "user", "content": [{"type": "text", "text": "hello " * 200}]}]
            handles = [
                client.submit(question, model=model_name(name), options={"max_new_tokens": 100}) for _ in range(8)
            ]
            for handle in handles:
                result = client.wait(handle.job, timeout=600)
                assert result.error is None and result.usage.completion_tokens > 0
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
        worker.stop()
        expected = needed(resolve(name)) - VISION_CACHE_BYTES
        weights = (resolve(name) / "onnx/weights.bin").stat().st_size
        rows.append([model_name(name), f"{weights // MB}", f"{peak // MB}", f"{expected // MB}"])
        shares[model_name(name)] = peak / expected
        print(f"figure: a CPU worker's peak memory with {weights // MB} MB of weights: {peak // MB} MB, "
              f"{shares[model_name(name)]:.2f} of what sailq doctor expects beside the vision cache")
    table("A CPU worker's memory", ["model", "weights, MB", "peak, MB", "expected, MB"], rows)
    assert {name: 0.8 <= share <= 1.1 for name, share in shares.items()} == dict.fromkeys(shares, True)
