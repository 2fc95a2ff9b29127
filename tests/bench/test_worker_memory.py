"""What a CPU worker takes of its machine's memory, beside what `sailq doctor` expects of its model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Table
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.shared.settings import model_name
from sailq.worker.catalog import resolve
from sailq.worker.doctor.memory import needed

pytestmark = pytest.mark.bench
MB = 10**6


def test_a_workers_memory(
    model: Path, start_worker: Callable[..., Companion], redis_url: str, table: Table
) -> None:
    """Its peak, with 8 slots that have each answered 300 tokens of prompt with 100."""
    rows = []
    for name in ("sailq-tiny", str(model)):
        worker = start_worker("--model", name)
        with Client(redis_url) as client:
            question = [{"role": "user", "content": [{"type": "text", "text": "hello " * 200}]}]
            handles = [
                client.submit(question, model=model_name(name), options={"max_new_tokens": 100}) for _ in range(8)
            ]
            for handle in handles:
                client.wait(handle.job, timeout=240)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
        worker.stop()
        expected, weights = needed(resolve(name)), (resolve(name) / "onnx/weights.bin").stat().st_size
        rows.append([model_name(name), f"{weights // MB}", f"{peak // MB}", f"{expected // MB}"])
        assert 0.8 * expected <= peak <= 1.1 * expected
    table("A CPU worker's memory", ["model", "weights, MB", "peak, MB", "expected, MB"], rows)
