"""The model, its files, and a batched forward pass that trains several times faster than the reference's.

The parameters are those of transformers' `Qwen2VLForConditionalGeneration`. Only the forward pass differs:
all temporal grids of a batch have one size, so vision attention is one call instead of one call a grid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as serialize
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from sailq.producer.samples import COLOURS, MOTIONS, SHAPES

from ..checkpoint import older_name
from .vocabulary import SIZE, SPECIAL

PATCH, MERGE, PAIR = 14, 2, 2
HIDDEN = 256
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FIRST_SPECIAL = SIZE - len(SPECIAL)
TOKEN = {name: FIRST_SPECIAL + place for place, name in enumerate(SPECIAL)}

IMAGE_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "min_pixels": 7056,
    "max_pixels": 10000,
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": PAIR,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_TEXT_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "max_window_layers", "rms_norm_eps",
    "initializer_range", "attention_dropout", "use_cache", "use_sliding_window", "sliding_window",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_VISION_SETTINGS = (
    "depth", "embed_dim", "hidden_size", "hidden_act", "mlp_ratio", "num_heads", "patch_size",
    "spatial_merge_size", "temporal_patch_size",
)  # fmt: skip


def build() -> Qwen2VLForConditionalGeneration:
    """A new model with random float32 weights."""
    text = {
        "vocab_size": SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": TOKEN["<|im_end|>"],
        "pad_token_id": TOKEN["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 3, "embed_dim": 160, "hidden_size": HIDDEN, "mlp_ratio": 4, "num_heads": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=TOKEN["<|image_pad|>"],
        video_token_id=TOKEN["<|video_pad|>"],
        vision_start_token_id=TOKEN["<|vision_start|>"],
        vision_end_token_id=TOKEN["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=None,
        eos_token_id=[TOKEN["<|im_end|>"], TOKEN["<|endoftext|>"]],
        pad_token_id=TOKEN["<|endoftext|>"],
    )
    return model


def save(model: Qwen2VLForConditionalGeneration, out: Path) -> None:
    """Write config, weights (rounded to float16) and processor settings beside the tokenizer's files.

    Config and tensor names have the form that Qwen2-VL itself was published in, which every reader knows:
    flat, with `visual.` and `model.` in front. The output matrix is left out: it is the embeddings.
    """
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    shared = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "tie_word_embeddings",
    )
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "float16",
        **{name: getattr(model.config, name) for name in shared},
        "vision_token_id": TOKEN["<|vision_pad|>"],
        **{name: getattr(text, name) for name in _TEXT_SETTINGS},
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": text.rope_parameters["mrope_section"]},
        "vision_config": {
            "model_type": "qwen2_vl",
            "in_chans": vision.in_channels,
            "spatial_patch_size": vision.patch_size,
            **{name: getattr(vision, name) for name in _VISION_SETTINGS},
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR, indent=2) + "\n")
    assert model.generation_config is not None
    model.generation_config.save_pretrained(out)
    weights = {older_name(name): value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    data = serialize({name: value.to(torch.float16).contiguous() for name, value in weights.items()}, {"format": "pt"})
    (out / "model.safetensors").write_bytes(data)


def patches(pixels: Tensor) -> Tensor:
    """RGB uint8 [grids, 2, height, width, 3] to float32 [grids, patches, 1176], in HF's order."""
    grids, _, height, width, _ = pixels.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    x = pixels.view(grids, PAIR, rows, MERGE, PATCH, columns, MERGE, PATCH, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    # Reorder the bytes, which are a quarter of the size of floats.
    x = x.reshape(grids, rows * columns * MERGE**2, 3, PAIR * PATCH**2)
    scale = torch.tensor([1 / (255 * s) for s in STD])[:, None]
    shift = torch.tensor([m / s for m, s in zip(MEAN, STD, strict=True)])[:, None]
    return (x * scale).sub_(shift).flatten(2)


def see(model: Qwen2VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Run the vision tower on grids of one size: uint8 [grids, 2, height, width, 3] to [grids, tokens, hidden]."""
    tower = model.model.visual
    rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    x = F.linear(patches(pixels), tower.patch_embed.proj.weight.flatten(1))
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    place = place.view(2, rows // MERGE, MERGE, columns // MERGE, MERGE).transpose(2, 3).reshape(2, -1)
    cos, sin = tower.rotary_pos_emb(x, place.T)
    for block in tower.blocks:
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = _attend(_turn(q, cos, sin), _turn(k, cos, sin), v)
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    merged: Tensor = tower.merger(x)
    return merged.view(len(pixels), -1, merged.shape[-1])


def read(model: Qwen2VLForConditionalGeneration, tokens: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
    """Run the language model: tokens [batch, length] and positions [3, batch, length] to [batch, length, hidden].

    `seen` fills the image and video placeholders in order. Padding goes at the end, where causal attention
    ignores it.
    """
    text = model.model.language_model
    x = text.embed_tokens(tokens)
    if seen is not None:
        slots = (tokens == TOKEN["<|image_pad|>"]) | (tokens == TOKEN["<|video_pad|>"])
        x = x.masked_scatter(slots[..., None], seen.to(x.dtype))
    cos, sin = (part[:, None] for part in text.rotary_emb(x, positions))
    later = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1)
    for layer in text.layers:
        attention = layer.self_attn
        y = layer.input_layernorm(x)
        q, k, v = (
            f(y).unflatten(-1, (-1, 128)).transpose(1, 2)
            for f in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        mixed = _attend(q, k, v, later)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    hidden: Tensor = text.norm(x)
    return hidden


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in plain products: for sequences this short their backward pass beats the fused kernel's."""
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    mixed: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return mixed


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)
    return turned.to(x.dtype)


class Judges(nn.Module):
    """Temporary heads that train the vision tower: every token must predict what its whole grid shows."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS), len(SHAPES), len(MOTIONS), 6)
        self.heads = nn.Linear(hidden, sum(self.sizes))

    def forward(self, seen: Tensor, labels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the accuracy of colour, shape and motion [3].

        `labels` int64 [grids, 3] are colour, shape and motion; `places` float32 [grids, 6] is (x, y, radius)
        in the grid's first and last frame.
        """
        *classes, where = self.heads(seen).float().split(self.sizes, -1)
        loss = 4 * F.smooth_l1_loss(where, places[:, None].expand_as(where), beta=0.1)
        right = []
        for place, scores in enumerate(classes):
            wanted = labels[:, place, None].expand(scores.shape[:2])
            loss = loss + F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
            right.append((scores.mean(1).argmax(-1) == labels[:, place]).float().mean())
        return loss, torch.stack(right).detach()
