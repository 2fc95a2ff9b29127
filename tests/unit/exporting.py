"""The exporter in this process, and checkpoints for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deploy.models import export_onnx

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl", "torch_dtype": "float16", "tie_word_embeddings": True, "vocab_size": 96,
    "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "image_token_id": 90, "video_token_id": 91,
    "vision_config": {"depth": 1, "embed_dim": 160, "hidden_size": 256, "mlp_ratio": 2, "num_heads": 2},
}
"""The smallest Qwen2-VL of the hub's form."""
SMALL = ("--seq_length", "12", "--vision_seq_length", "8")


def run(directory: Path, out: Path, *options: str) -> int:
    """The exit code of the exporter's command line."""
    return export_onnx.main(["--model_path", str(directory), "--out", str(out), *options])


def hub_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters by transformers 5's names, tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def write(
    directory: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *,
    named: Callable[[str], str] = hub_name, shards: int = 1,
) -> Path:
    """Write a checkpoint in so many files; the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    names, places = list(weights), {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({named(name): weights[name].contiguous() for name in names[number::shards]}, directory / file)
        places |= dict.fromkeys(map(named, names[number::shards]), file)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return directory
