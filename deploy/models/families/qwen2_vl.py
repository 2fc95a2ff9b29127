"""Qwen2-VL's vision tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sailq.worker.engine.families.family import Family

from ..modules import Linear
from .vision_nets import VisionAttention, VisionTower


class VisionBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = block.norm1, block.norm2, VisionAttention(block.attn)
        self.fc1, self.fc2, self.act = Linear.of(block.mlp.fc1), Linear.of(block.mlp.fc2), block.mlp.act

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        mlp: Tensor = self.fc2(self.act(self.fc1(self.norm2(x))))
        return x + mlp


class Vit(VisionTower):
    """pixels [N, P], pos_ids int32 [N, 2] (row, column), mask [1, N, N] -> [N / merge², H]."""

    def __init__(self, visual: Any, family: Family) -> None:
        super().__init__(visual, family)
        self.blocks = nn.ModuleList(VisionBlock(block) for block in visual.blocks)
        merger = visual.merger
        self.ln_q, self.merged = merger.ln_q, merger.hidden_size
        self.fc1, self.act, self.fc2 = Linear.of(merger.mlp[0]), merger.mlp[1], Linear.of(merger.mlp[2])

    def forward(self, pixels: Tensor, pos_ids: Tensor, mask: Tensor) -> Tensor:
        x, (cos, sin) = self.embed(pixels), self.angles(pos_ids)
        for block in self.blocks:
            x = block(x, cos, sin, mask.unsqueeze(1))
        merged: Tensor = self.fc2(self.act(self.fc1(self.ln_q(x).reshape(-1, self.merged))))
        return merged
