"""What the vision towers have in common. Built from transformers' modules without data, they are traced, never run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sailq.worker.engine.families.family import Family

from ..lazy import Lazy
from ..modules import Linear, attend, floats, ints, rotate

LONGEST_SIDE = 8192
"""Pixels along the longest side of a frame that may reach a worker. Rotary tables have a row for each patch of it."""

Axes = dict[str, dict[int, str]]


class VisionAttention(nn.Module):
    """x [N, C], cos, sin [1, N, 1, head dim], mask [1, 1, N, N] -> [N, C]."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear.of(attn.qkv, part, 3) for part in range(3))
        self.proj = Linear.of(attn.proj)
        self.heads, self.dim = attn.num_heads, attn.head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        shape = (1, -1, self.heads, self.dim)
        q = rotate(self.q(x).reshape(shape), cos, sin)
        k = rotate(self.k(x).reshape(shape), cos, sin)
        y = attend(q, k, self.v(x).reshape(shape), mask)
        out: Tensor = self.proj(y.reshape(-1, self.heads * self.dim))
        return out


class VisionTower(nn.Module):
    """pixels [N, P] in 0..255, and other inputs -> vision tokens [N / merge², H].

    A patch lies where transformers' processor puts it. Rescaling and normalisation are folded into the patch
    embedding, in float64: W ((p·r - m) / s) + b = (W·r/s) p + b - W (m/s), r the rescale factor, m and s the mean and
    standard deviation of p's channel.

    Attributes:
        outputs: names of the outputs.
    """

    outputs: tuple[str, ...] = ("embeds",)

    def __init__(self, visual: Any, family: Family) -> None:
        super().__init__()
        config = visual.config
        per_channel = config.temporal_patch_size * config.patch_size**2
        m, s = (torch.tensor(v, dtype=torch.float64).repeat_interleave(per_channel) for v in (family.mean, family.std))
        proj = visual.patch_embed.proj
        self.patch_embed = Linear(
            Lazy(proj.weight, lambda w: (w.flatten(1).double() * (family.rescale / s).to(w.device)).float().t()),
            Lazy(proj.weight, lambda w: -(w.flatten(1).double() @ (m / s).to(w.device)).float()),
        )
        self.bias = None if proj.bias is None else Lazy(proj.bias)
        rows = LONGEST_SIDE // config.patch_size + 1
        angles = torch.outer(torch.arange(rows).float(), visual.rotary_pos_emb.inv_freq)
        self.cos, self.sin = Lazy(angles.cos()), Lazy(angles.sin())

    def inputs(self, patches: int) -> tuple[dict[str, Tensor], Axes]:
        """Example inputs by name, for so many patches, and their open axes."""
        inputs = {
            "pixels": floats(patches, self.patch_embed.weight.shape[0]), "pos_ids": ints(patches, 2),
            "mask": floats(1, patches, patches),
        }
        return inputs, {"pixels": {0: "N"}, "pos_ids": {0: "N"}, "mask": {1: "N", 2: "N"}}

    def embed(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.patch_embed(pixels)
        return x if self.bias is None else x + self.bias

    def angles(self, pos_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, [1, N, 1, head dim], of int32 [N, 2] (row, column): rows then columns, twice."""
        cos, sin = (
            functional.embedding(pos_ids, table).reshape(1, -1, 1, 2 * table.shape[-1])
            for table in (self.cos, self.sin)
        )
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
