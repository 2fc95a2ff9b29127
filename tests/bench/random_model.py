"""A Qwen2-VL of about 250 M random parameters: large enough that a step is the model's time and not the host's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from sailq.worker.model_files.model_paths import resolve

ROOT = Path(__file__).parents[2]
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
          "generation_config.json")
_SIZES = {
    "vocab_size": 65536, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.05,
}
_VISION = {"depth": 6, "embed_dim": 320, "num_heads": 4, "hidden_size": 1024}


def make(out: Path) -> int:
    """Write the checkpoint and its CPU nets to `out`, with sailq-tiny's tokenizer; returns the number of parameters.

    Seeded. The rows of the end tokens are zero, and so are their logits, which are then never the highest: every
    answer is as long as it may be.
    """
    source = resolve("sailq-tiny")
    config = json.loads((source / "config.json").read_text()) | _SIZES
    config["vision_config"] |= _VISION
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config))
    ends = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[ends] = 0
    model.half().save_pretrained(out)
    for name in _FILES:
        shutil.copy(source / name, out)
    command = [sys.executable, "-m", "deploy.models.export_onnx", "--dynamic", "--model_path", str(out.absolute()),
               "--out", str(out.absolute() / "onnx")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return sum(parameter.numel() for parameter in model.parameters())
