"""What fewer bits of a ViT's weights cost at the size of Qwen2-VL-7B: the cosine of its vision tokens with those of
half precision. Some minutes on two cores.

    .venv/bin/python -m tests.bench.vision_bits

The weights are random, rounded as `deploy.models.round_weights` does, and the arithmetic is float32. Trained weights
have outliers, which widen the steps of their groups, so the second kind of weights has long tails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    get_vision_attention_seqlens,
    get_vision_position_ids,
)

from deploy.models.round_weights import SCHEMES, VISION_GROUP, rounded
from sailq.worker.engine.families.qwen2_vl import Qwen2VL
from tests.bench.tpu_nets import CONFIGS
from tests.camera import camera_clip, drawn_on

CONFIG = CONFIGS["qwen2-vl-7b"]["vision_config"]
GRID = (1, 10, 16)
"""sophon-demo's clip: 2 frames of 140 × 224."""
NORMAL, LONG_TAILS = "a normal distribution", "Student's t with 3 degrees of freedom"
DRAW: dict[str, Callable[[torch.Size], torch.Tensor]] = {
    NORMAL: lambda shape: 0.02 * torch.randn(shape),
    LONG_TAILS: lambda shape: 0.02 / 3**0.5 * torch.distributions.StudentT(3.0).sample(shape),
}


def tokens(draw: Callable[[torch.Size], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision tokens, [40, 3584], in half precision and in each scheme of 16-bit floats. A block's weights are drawn
    when it runs, so that memory holds one block."""
    config = Qwen2VLVisionConfig(**copy.deepcopy(CONFIG) | {"depth": 1})
    config._attn_implementation = "sdpa"
    vit, family, grid = Qwen2VisionTransformerPretrainedModel(config).eval(), Qwen2VL(), torch.tensor([GRID])
    torch.manual_seed(0)
    frames = drawn_on(camera_clip(2, 140, 224))
    hidden = vit.patch_embed(torch.from_numpy(family.pixel_values(family.patches(frames))))
    angles = vit.rotary_pos_emb(hidden, get_vision_position_ids(grid, config.spatial_merge_size))
    lengths, longest = get_vision_attention_seqlens(grid, config)
    names = ["f16", *(name for name, scheme in SCHEMES.items() if scheme.dtype == "F16")]
    states = dict.fromkeys(names, hidden)
    for _ in range(CONFIG["depth"]):
        states = run(vit.blocks[0], states, draw, cu_seqlens=lengths, max_seqlen=longest, position_embeddings=angles)
    return run(vit.merger, states, draw)


def run(
    part: Any, states: dict[str, torch.Tensor], draw: Callable[[torch.Size], torch.Tensor], **inputs: Any
) -> dict[str, torch.Tensor]:
    """A block or the merger with new weights, in each scheme on that scheme's states."""
    drawn = {parameter: draw(parameter.shape).half().float() for parameter in part.parameters() if parameter.ndim == 2}
    made = {}
    for name, hidden in states.items():
        for parameter, weight in drawn.items():
            values = weight if name == "f16" else torch.from_numpy(rounded(weight.numpy(), SCHEMES[name], VISION_GROUP))
            parameter.copy_(values)
        made[name] = part(hidden, **inputs)
    return made


def main() -> None:
    for weights, draw in DRAW.items():
        with torch.inference_mode():
            exact, *others = tokens(draw).items()
        for name, found in others:
            cosines = torch.cosine_similarity(exact[1], found, dim=-1)
            print(f"figure: a 7B's ViT, weights drawn from {weights}, in {name}: cosine of a vision token with half "
                  f"precision's at least {cosines.min():.6f}, {cosines.mean():.6f} on average", flush=True)


if __name__ == "__main__":
    main()
