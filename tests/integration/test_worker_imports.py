"""What a real worker imports, from its start to its last answer: no torch, although it is installed here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rounding import w4_tiny

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.producer.samples import write_samples
from sailq.shared.settings import model_name
from sailq.worker.model_files.model_paths import resolve

FOREIGN = {"torch", "transformers", "onnx", "safetensors", "huggingface_hub", "accelerate", "torchvision"}


@pytest.mark.parametrize("model", ["fp32", pytest.param("w4", marks=pytest.mark.proof)])
def test_a_worker_answers_without_importing_torch(
    model: str, start_worker: Callable[..., ManagedProcess], redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = w4_tiny(tmp_path) if model == "w4" else resolve("sailq-tiny")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # names each module on stderr when it is imported
    worker = start_worker("--model", directory)
    folder = tmp_path / "samples"
    with Client(redis_url) as client:
        for row in write_samples(7, 6, folder):
            handle = client.submit(row["messages"], model=model_name(str(directory)), base=folder)
            assert client.wait(handle.job, timeout=300).text == row["answer"]
    libraries = Path(f"/proc/{worker.pid}/maps").read_text()
    worker.stop()
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", worker.log.read_text(), re.MULTILINE))
    assert "onnxruntime" in imported and "onnxruntime" in libraries
    assert importlib.util.find_spec("torch") is not None  # a worker could import it
    assert not {name for name in imported if name.partition(".")[0] in FOREIGN}
    assert "/torch/" not in libraries
