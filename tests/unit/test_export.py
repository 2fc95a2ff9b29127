"""The exported nets: sophon-demo's names and layout, a fit opset, and weights once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from qwen2vl import ROOT, random_model
from sailq.worker.engine.model import ModelSpec
from transformers import Qwen2VLForConditionalGeneration

H, V, KV, D = 256, 896, 1, 128
LAYOUT = {
    "vit": ({"pixels": ["N", 1176], "pos_ids": ["N", 2], "mask": [1, "N", "N"]}, {"embeds": ["M", H]}),
    "embedding": ({"input_ids": ["B", "S"]}, {"hidden": ["B", "S", H]}),
    "block_1": (
        {"hidden": ["B", "S", H], "position_ids": [3, "B", "S"], "mask": ["B", 1, "S", "S"]},
        {"hidden_out": ["B", "S", H], "k": ["B", "S", KV, D], "v": ["B", "S", KV, D]},
    ),
    "block_cache_1": (
        {"hidden": ["B", 1, H], "position_ids": [3, "B", 1], "mask": ["B", 1, 1, "L1"],
         "past_k": ["B", "L", KV, D], "past_v": ["B", "L", KV, D]},
        {"hidden_out": ["B", 1, H], "k": ["B", 1, KV, D], "v": ["B", 1, KV, D]},
    ),
    "lm_head": ({"hidden": ["B", H]}, {"logits": ["B", V]}),
}


def _shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.mark.parametrize("name", LAYOUT)
def test_names_and_shapes(name: str) -> None:
    model = onnx.load(random_model() / f"onnx/{name}.onnx", load_external_data=False)
    inputs, outputs = LAYOUT[name]
    assert _shapes(list(model.graph.input)) == inputs
    found = _shapes(list(model.graph.output))
    assert list(found) == list(outputs) and all(len(found[key]) == len(outputs[key]) for key in found)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_each_weight_is_stored_once() -> None:
    directory = random_model()
    files = sorted(path.name for path in (directory / "onnx").iterdir())
    layers = json.loads((directory / "config.json").read_text())["text_config"]["num_hidden_layers"]
    blocks = [f"{kind}_{index}.onnx" for kind in ("block", "block_cache") for index in range(layers)]
    assert files == sorted([*blocks, "vit.onnx", "embedding.onnx", "lm_head.onnx", "weights.bin"])
    model = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    tables = ModelSpec.load(directory).context * D
    assert (directory / "onnx/weights.bin").stat().st_size < 4 * (weights + tables) * 1.02


def test_static_nets_have_one_shape_and_no_other_axes(tmp_path: Path) -> None:
    script = ROOT / "deploy/models/export_onnx.py"
    sizes = ["--seq_length", "32", "--vision_seq_length", "8"]
    command = [sys.executable, str(script), "--model_path", str(random_model()), "--out", str(tmp_path), *sizes]
    subprocess.run(command, check=True, capture_output=True, text=True)
    expected = {
        "vit": [[8, 1176], [8, 2], [1, 8, 8]],
        "embedding": [[1, 32]],
        "embedding_cache": [[1, 1]],
        "block_1": [[1, 32, H], [3, 1, 32], [1, 1, 32, 32]],
        "block_cache_1": [[1, 1, H], [3, 1, 1], [1, 1, 1, 33], [1, 32, KV, D], [1, 32, KV, D]],
        "lm_head": [[1, H]],
        "greedy_head": [[1, V]],
    }
    for name, shapes in expected.items():
        model = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False)
        assert list(_shapes(list(model.graph.input)).values()) == shapes, name
