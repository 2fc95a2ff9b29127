"""Write a small checkpoint with random weights, to test exports, compilers and runners with.

    python -m deploy.models.random_checkpoint --family qwen2_5_vl --out DIR
    python -m deploy.models.random_checkpoint --family qwen3_vl --untied_head --out DIR

It has what the family's published models have, in small: the kinds of layers, the shapes of heads, the names of tensors
and the files, as the hub's repositories hold them. Its tokenizer is sailq-tiny's. Its answers mean nothing, but they
depend on every part of the prompt.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from . import exit_codes
from .checkpoint import older_name
from .exit_codes import Failure

_TINY = Path(__file__).parents[2] / "worker/models/sailq-tiny"
"""The model whose tokenizer is copied."""
_TOKENS = {
    "vision_start_token_id": 891, "vision_end_token_id": 892, "image_token_id": 894, "video_token_id": 895,
}
_END, _PAD, _VOCABULARY = 884, 882, 896
_CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

_OLDER = ("qwen2_vl", "qwen2_5_vl")
"""The families of `older_name`."""

Files = dict[str, dict[str, Any]]
"""The JSON files of a directory, by name."""

_QWEN3_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif content.type == 'video' or 'video' in content %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Of the published form: without a system turn of its own."""


def write(out: Path, family: str, *, tied: bool = True, seed: int = 0, context: int = 4096) -> None:
    """Write a checkpoint's files into `out`, an empty directory or none.

    Args:
        family: one of `FAMILIES`.
        tied: whether the embedding is the head too, as in the smaller published models. A Qwen3-VL has the ViT's
            head dim of the published 4B model (64) if it is, else of the 8B model (72).
        seed: of the weights. The same seed gives the same weights.
        context: `max_position_embeddings`.

    Raises:
        Failure: `out` holds files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Failure(f"{out} is not an empty directory.")
    out.mkdir(parents=True, exist_ok=True)
    files, template = FAMILIES[family](tied, context)
    files["generation_config.json"] = {"bos_token_id": _PAD, "pad_token_id": _PAD, "eos_token_id": [_END, _PAD]}
    tokenizer = json.loads((_TINY / "tokenizer_config.json").read_text("utf-8"))
    files["tokenizer_config.json"] = tokenizer | {"model_max_length": context, "chat_template": template}
    for name, fields in files.items():
        (out / name).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
    shutil.copy(_TINY / "tokenizer.json", out)
    save_file(_weights(out, seed), out / "model.safetensors", {"format": "pt"})


def _qwen2_vl(tied: bool, context: int) -> tuple[Files, str]:
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **_text(tied, context, 256, 2),
        "vision_config": {
            "depth": 2, "embed_dim": 160, "hidden_size": 256, "num_heads": 2, "mlp_ratio": 4,
            "hidden_act": "quick_gelu", "in_chans": 3, "patch_size": 14, "spatial_patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "model_type": "qwen2_vl",
        },
    }
    return {"config.json": config, "preprocessor_config.json": _processor("Qwen2VLProcessor")}, _qwen2_template()


def _qwen2_5_vl(tied: bool, context: int) -> tuple[Files, str]:
    """Windows of 4 × 4 vision tokens in two of four layers. The MLP's width is no multiple of 64, as in the published
    3B and 7B (3420)."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        **_text(tied, context, 512, 4),
        "vision_config": {
            "depth": 4, "hidden_act": "silu", "hidden_size": 160, "intermediate_size": 428, "num_heads": 2,
            "in_chans": 3, "out_hidden_size": 512, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    }
    return {"config.json": config, "preprocessor_config.json": _processor("Qwen2_5_VLProcessor")}, _qwen2_template()


def _qwen3_vl(tied: bool, context: int) -> tuple[Files, str]:
    """Deepstack after three of five ViT layers, into the first three of four layers. Heads of 128 in a width of 256."""
    text = {
        "model_type": "qwen3_vl_text", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": _PAD,
        "dtype": "float16", "eos_token_id": _END, "head_dim": 128, "hidden_act": "silu", "hidden_size": 256,
        "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": context,
        "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": tied, "use_cache": True, "vocab_size": _VOCABULARY,
    }
    vision = {
        "model_type": "qwen3_vl", "deepstack_visual_indexes": [1, 2, 3], "depth": 5,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 128 if tied else 144, "in_channels": 3,
        "initializer_range": 0.02, "intermediate_size": 512 if tied else 538, "num_heads": 2,
        "num_position_embeddings": 2304, "out_hidden_size": 256, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **_TOKENS,
        "text_config": text, "tie_word_embeddings": tied, "vision_config": vision,
    }
    processor = {
        "size": {"longest_edge": 65536, "shortest_edge": 4096}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, **_HALF, "processor_class": "Qwen3VLProcessor",
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": processor | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": processor | {
            "size": {"longest_edge": 1048576, "shortest_edge": 4096}, "video_processor_type": "Qwen3VLVideoProcessor",
        },
    }
    return files, _QWEN3_TEMPLATE


FAMILIES: dict[str, Callable[[bool, int], tuple[Files, str]]] = {
    "qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl,
}
"""By `model_type`: the files of a family's checkpoint and its chat template, for a tied head or not and a context."""


def _text(tied: bool, context: int, width: int, heads: int) -> dict[str, Any]:
    """The language model's fields of a config.json without a text_config. Two heads share keys and values."""
    return {
        "attention_dropout": 0.0, "bos_token_id": _PAD, "eos_token_id": _END, **_TOKENS, "hidden_act": "silu",
        "hidden_size": width, "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": context,
        "max_window_layers": 2, "num_attention_heads": heads, "num_hidden_layers": 2, "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": context, "tie_word_embeddings": tied,
        "torch_dtype": "float16", "use_cache": True, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": _VOCABULARY,
    }


def _processor(name: str) -> dict[str, Any]:
    return {
        "min_pixels": 3136, "max_pixels": 50176, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **_CLIP,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": name,
    }


def _qwen2_template() -> str:
    return (_TINY / "chat_template.jinja").read_text("utf-8")


def _weights(directory: Path, seed: int) -> dict[str, torch.Tensor]:
    """float16 weights of the model that config.json describes, by the names of the hub's checkpoints."""
    config, auto = AutoConfig.from_pretrained(directory), cast(Any, AutoModelForImageTextToText)
    with torch.device("meta"):
        model = auto.from_config(config)
    random = np.random.default_rng(seed)  # the same numbers on every machine
    named = older_name if config.model_type in _OLDER else str
    weights = {}
    for name, parameter in model.named_parameters():
        mean, deviation = _distribution(name, parameter.shape)
        value = torch.from_numpy(random.standard_normal(tuple(parameter.shape), np.float32)) * deviation + mean
        weights[named(name)] = value.half()
    return weights


def _distribution(name: str, shape: torch.Size) -> tuple[float, float]:
    """Mean and standard deviation of a parameter's values.

    A matrix makes values of about the size of its inputs, half as large again: heads then look at few tokens, and no
    part of the prompt drowns.
    """
    if name.endswith("bias"):
        return 0.0, 0.1
    if len(shape) == 1:
        return 1.0, 0.2
    if name.endswith("embed_tokens.weight"):
        return 0.0, 0.1
    if name.endswith("pos_embed.weight"):
        return 0.0, 0.7
    return 0.0, 1.5 / math.sqrt(math.prod(shape[1:]))


def main(command: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own, and return its exit code."""
    arguments = _parser().parse_args(command)
    return exit_codes.run(
        "random_checkpoint",
        lambda: write(arguments.out, arguments.family, tied=not arguments.untied_head, seed=arguments.seed),
        "the directory holds only some of the files",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.random_checkpoint",
        description="Write a checkpoint of a few million random float16 weights, with the files and the tensor names "
        "of the family's published models: config.json, processor and tokenizer files, model.safetensors. Then export "
        "it (export_onnx), compile it (compile.sh) or load it with transformers. Its answers mean nothing.",
    )
    add = parser.add_argument
    add("--family", choices=tuple(FAMILIES), required=True,
        help="qwen2_vl; qwen2_5_vl: windows in its ViT, and time in seconds; qwen3_vl: deepstack, interpolated "
        "positions, q/k norms, heads wider than the model's width says")
    add("--out", type=Path, required=True, help="directory for the files; made if need be, and must be empty")
    add("--untied_head", action="store_true",
        help="a head of its own, as larger published models have; without it the embedding is the head")
    add("--seed", type=int, default=0, help="of the weights; default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
