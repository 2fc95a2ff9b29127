"""Qwen3-VL's vision tower: interpolated positions, and vision features of several layers (deepstack)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sailq.worker.engine.families.family import Family

from ..lazy import Lazy
from ..modules import Linear, floats, ints
from .vision_nets import Axes, VisionAttention, VisionTower


class VisionBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = block.norm1, block.norm2, VisionAttention(block.attn)
        mlp = block.mlp
        self.fc1, self.fc2, self.act = Linear.of(mlp.linear_fc1), Linear.of(mlp.linear_fc2), mlp.act_fn

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        mlp: Tensor = self.fc2(self.act(self.fc1(self.norm2(x))))
        return x + mlp


class Merger(nn.Module):
    """[N, C] -> [N / merge², H]. Normalises patches, or else the merged ones."""

    def __init__(self, merger: Any) -> None:
        super().__init__()
        self.norm, self.merged, self.after = merger.norm, merger.hidden_size, merger.use_postshuffle_norm
        self.fc1, self.fc2, self.act = Linear.of(merger.linear_fc1), Linear.of(merger.linear_fc2), merger.act_fn

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, self.merged)
        y = self.norm(x.reshape(shape)) if self.after else self.norm(x).reshape(shape)
        merged: Tensor = self.fc2(self.act(self.fc1(y)))
        return merged


class Vit(VisionTower):
    """pixels [N, P], pos_ids int32 [N, 2] (row, column), pos_idx int32 [N, 4] and pos_weight [N, 4, 1], the learned
    positions around each patch and their weights, mask [1, N, N] -> [N / merge², H] vision tokens, and as many features
    for each of the language model's first layers."""

    def __init__(self, visual: Any, family: Family) -> None:
        super().__init__(visual, family)
        self.position = Lazy(visual.pos_embed.weight)
        self.blocks = nn.ModuleList(VisionBlock(block) for block in visual.blocks)
        self.merger = Merger(visual.merger)
        self.mergers = nn.ModuleList(map(Merger, visual.deepstack_merger_list))
        self.layers = list(visual.config.deepstack_visual_indexes)
        self.outputs = ("embeds", *(f"deepstack_{index}" for index in range(len(self.layers))))

    def inputs(self, patches: int) -> tuple[dict[str, Tensor], Axes]:
        inputs, axes = super().inputs(patches)
        mask = inputs.pop("mask")
        inputs |= {"pos_idx": ints(patches, 4), "pos_weight": floats(patches, 4, 1), "mask": mask}
        return inputs, axes | {"pos_idx": {0: "N"}, "pos_weight": {0: "N"}}

    def forward(
        self, pixels: Tensor, pos_ids: Tensor, pos_idx: Tensor, pos_weight: Tensor, mask: Tensor
    ) -> tuple[Tensor, ...]:
        x = self.embed(pixels) + (functional.embedding(pos_idx, self.position) * pos_weight).sum(1)
        (cos, sin), features = self.angles(pos_ids), []
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask.unsqueeze(1))
            if index in self.layers:
                features.append(self.mergers[self.layers.index(index)](x))
        return self.merger(x), *features
