"""Qwen2.5-VL's vision tower: RMSNorm, SwiGLU, and layers that see windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sailq.worker.engine.families.family import Family

from ..modules import Linear, RMSNorm, ints
from .vision_nets import Axes, VisionAttention, VisionTower


class VisionBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(block.norm1), RMSNorm(block.norm2)
        self.attn, mlp = VisionAttention(block.attn), block.mlp
        self.gate, self.up, self.down = (Linear.of(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.act = mlp.act_fn

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        y = self.norm2(x)
        mlp: Tensor = self.down(self.act(self.gate(y)) * self.up(y))
        return x + mlp


class Vit(VisionTower):
    """pixels [N, P] and pos_ids int32 [N, 2] (row, column), window after window; mask, which hides other temporal
    grids, and window_mask, which hides other windows, [1, N, N]; reverse_indices int32 [N / merge²], the place of each
    vision token among those of the windows -> [N / merge², H], in the order of transformers."""

    def __init__(self, visual: Any, family: Family) -> None:
        super().__init__(visual, family)
        self.blocks = nn.ModuleList(VisionBlock(block) for block in visual.blocks)
        self.full = frozenset(visual.config.fullatt_block_indexes)
        merger = visual.merger
        self.ln_q, self.merged = RMSNorm(merger.ln_q), merger.hidden_size
        self.merge = visual.config.spatial_merge_size**2
        self.fc1, self.act, self.fc2 = Linear.of(merger.mlp[0]), merger.mlp[1], Linear.of(merger.mlp[2])

    def inputs(self, patches: int) -> tuple[dict[str, Tensor], Axes]:
        inputs, axes = super().inputs(patches)
        more = {"window_mask": inputs["mask"], "reverse_indices": ints(patches // self.merge)}
        return inputs | more, axes | {"window_mask": axes["mask"], "reverse_indices": {0: "M"}}

    def forward(
        self, pixels: Tensor, pos_ids: Tensor, mask: Tensor, window_mask: Tensor, reverse_indices: Tensor
    ) -> Tensor:
        x, (cos, sin) = self.embed(pixels), self.angles(pos_ids)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, (mask if index in self.full else window_mask).unsqueeze(1))
        merged = self.fc2(self.act(self.fc1(self.ln_q(x).reshape(-1, self.merged))))
        return functional.embedding(reverse_indices, merged)
