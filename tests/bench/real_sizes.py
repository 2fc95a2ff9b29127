"""Models of real sizes with random weights, written without holding them in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from deploy.models.checkpoint import older_name
from sailq.worker.model_files.model_paths import resolve
from tests.bench.tpu_nets import CONFIGS, random_weights

ROOT = Path(__file__).parents[2]

MODEL = "qwen2-vl-2b"
CONFIG = CONFIGS[MODEL]
_SHARD = 256 * 2**20
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
          "generation_config.json")
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_id")


def write(directory: Path, model: str = MODEL) -> int:
    """Write a float16 checkpoint with the hub's names and sailq-tiny's tokenizer, shard by shard. Returns its bytes.
    `model`: one of `tpu_nets.CONFIGS`.

    Seeded. The scores of the end tokens are 0, which is never the highest: every answer is as long as it may be.
    """
    source = resolve("sailq-tiny")
    tiny = json.loads((source / "config.json").read_text())
    config = CONFIGS[model] | {name: tiny[name] for name in _TOKENS}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for name in _FILES:
        shutil.copy(source / name, directory)
    ends = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    places = {}
    for number, shapes in enumerate(_shards(config), 1):
        file = f"model-{number:05}.safetensors"
        save_file({name: _weight(name, shape, ends) for name, shape in shapes.items()}, directory / file)
        places |= dict.fromkeys(shapes, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def export(model: Path, out: Path, *options: str) -> None:
    """The CPU nets of a checkpoint, by the exporter's command line."""
    command = [sys.executable, "-m", "deploy.models.export_onnx", "--dynamic", "--model_path", str(model.absolute()),
               "--out", str(out.absolute()), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _shards(config: Mapping[str, Any]) -> Iterator[dict[str, torch.Size]]:
    """The shapes of tensors that are stored together, by name."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**json.loads(json.dumps(config))))
    named = str if "text_config" in config else older_name
    shard: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        if shard and sum(map(torch.Size.numel, shard.values())) + parameter.numel() > _SHARD:
            yield shard
            shard = {}
        shard[named(name)] = parameter.shape
    yield shard


def _weight(name: str, shape: torch.Size, ends: list[int]) -> torch.Tensor:
    if len(shape) == 1 and "norm" in name:
        return torch.ones(shape, dtype=torch.float16)
    weight = random_weights(shape, sum(name.encode()) * 4099)
    if name.endswith("embed_tokens.weight"):
        weight[ends] = 0
    return weight
