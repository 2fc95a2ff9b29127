"""The language model as the nets that are exported: small modules over the parameters of transformers' model.

Built from a `Checkpoint.model`, they have no data: they are traced, never run.

Grouped heads are repeated with Tile, which the TPU compiler fuses. Rotary angles come from tables, because a
half-precision angle of 1000 rad is off by half a radian.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lazy import Lazy
from .modules import Linear, LongLinear, RMSNorm, attend, reshape, rotate


class Rotary(nn.Module):
    """M-RoPE (arXiv 2409.12191, section 2.1): each frequency turns with one of three positions.

    Args:
        rotary: transformers' module.
        rows: of the tables: positions must be below it.
        interleaved: whether frequencies take the positions by turns, and not in three sections.
    """

    def __init__(self, rotary: Any, rows: int, interleaved: bool) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(rows).float(), rotary.inv_freq)
        scale = rotary.attention_scaling
        self.cos, self.sin = Lazy(angles.cos() * scale), Lazy(angles.sin() * scale)
        self.sections = [int(size) for size in rotary.mrope_section]
        self.turns = Lazy(self._turns(len(rotary.inv_freq))) if interleaved else None

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self._pick(self.cos, position_ids), self._pick(self.sin, position_ids)

    def _pick(self, table: Tensor, position_ids: Tensor) -> Tensor:
        """table [context, dim / 2], position_ids [3, B, S] -> [B, S, 1, dim]. Gathered once: on a TPU each Gather has a
        copy of its table."""
        rows = functional.embedding(position_ids, table)
        if self.turns is not None:
            time, height, width = rows * self.turns
            return torch.cat((time + height + width,) * 2, dim=-1).unsqueeze(2)
        parts, start = [], 0
        for index, size in enumerate(self.sections):
            parts.append(rows[index % 3, ..., start : start + size])
            start += size
        return torch.cat(parts * 2, dim=-1).unsqueeze(2)

    def _turns(self, frequencies: int) -> Tensor:
        """[3, 1, 1, frequencies]: 1 where a frequency turns with a position, else 0. Height and width have every third
        one, as far as their sections go; time has the others."""
        turns = torch.zeros(3, 1, 1, frequencies)
        for axis in (1, 2):
            turns[axis, ..., axis : 3 * self.sections[axis] : 3] = 1
        turns[0] = 1 - turns[1] - turns[2]
        return turns


class Layer(nn.Module):
    """What the nets of one decoder layer share: its weights and its mathematics."""

    def __init__(self, layer: Any, rotary: Rotary) -> None:
        super().__init__()
        attn, mlp = layer.self_attn, layer.mlp
        self.rotary = rotary
        self.input_norm = RMSNorm(layer.input_layernorm)
        self.post_norm = RMSNorm(layer.post_attention_layernorm)
        self.q, self.k, self.v, self.o = (
            Linear.of(getattr(attn, f"{name}_proj")) for name in ("q", "k", "v", "o")
        )
        self.gate, self.up, self.down = Linear.of(mlp.gate_proj), Linear.of(mlp.up_proj), LongLinear.of(mlp.down_proj)
        self.act = mlp.act_fn
        self.dim = attn.head_dim
        self.heads, self.kv_heads = (proj.out_features // self.dim for proj in (attn.q_proj, attn.k_proj))
        norms = (getattr(attn, name, None) for name in ("q_norm", "k_norm"))
        self.q_norm, self.k_norm = (nn.Identity() if norm is None else RMSNorm(norm) for norm in norms)

    def qkv(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.input_norm(hidden)
        q, k, v = (self.split(linear(x), heads) for linear, heads in (
            (self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads)))
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v

    def finish(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """The rest of the layer, from the attention's result [B, S, heads, dim]."""
        x: Tensor = hidden + self.o(self.join(attention))
        y = self.post_norm(x)
        mlp: Tensor = self.down(self.act(self.gate(y)) * self.up(y))
        return x + mlp

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[B, S, heads × dim] -> [B, S, heads, dim]."""
        return x.reshape(x.shape[0], x.shape[1], heads, self.dim)

    def join(self, x: Tensor) -> Tensor:
        """[B, S, heads, dim] -> [B, S, heads × dim]."""
        return x.reshape(x.shape[0], x.shape[1], self.heads * self.dim)

    def repeat(self, kv: Tensor) -> Tensor:
        """[B, S, kv heads, dim] -> [B, S, heads, dim]."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return kv
        tiled = kv.unsqueeze(3).expand(-1, -1, -1, groups, -1)
        return tiled.reshape(kv.shape[0], kv.shape[1], self.heads, self.dim)

    def attend_fused(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, past: tuple[Tensor, Tensor], *recent: Tensor
    ) -> Tensor:
        """The same for one query a row, in the form that becomes the TPU's fused attention. `recent`: none, or more
        rows of the past's keys and values, [R, B, kv heads, dim]."""
        if recent:
            past_k, past_v = (
                torch.cat((rows, new.transpose(0, 1)), dim=1) for rows, new in zip(past, recent, strict=True)
            )
            past = past_k, past_v
        k, v = (self.repeat(torch.cat((rows, new), dim=1)) for rows, new in zip(past, (k, v), strict=True))
        return attend(q, k, v, mask)


class CpuLayer(Layer):
    """The same for a CPU. The shapes in its graph are constants, because each operator that computes a shape takes
    time."""

    def split(self, x: Tensor, heads: int) -> Tensor:
        return reshape(x, (0, -1, heads, self.dim))

    def join(self, x: Tensor) -> Tensor:
        return reshape(x, (0, -1, self.heads * self.dim))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> Tensor:
        """Each row's queries over its past, [B, kv heads, L, dim], which may be empty, and its own keys, without a copy
        of the past for each group of heads.

        With keys joined and repeated, as `attend_fused` has them, a CPU is 4 to 17 times slower here (one query, batch
        8, 512 columns).
        """
        columns = past_k.shape[2]
        q = reshape(q, (0, 0, self.kv_heads, -1, self.dim)).permute(0, 2, 3, 1, 4)
        q = reshape(q, (0, 0, -1, self.dim)) * (1 / math.sqrt(self.dim))
        k, v = (rows.permute(0, 2, 1, 3) for rows in (k, v))
        scores = torch.cat((torch.matmul(q, past_k.transpose(2, 3)), torch.matmul(q, k.transpose(2, 3))), dim=-1)
        weights = functional.softmax(reshape(scores, (0, self.heads, -1, 0)) + mask, dim=-1)
        weights = reshape(weights, (0, self.kv_heads, -1, 0))
        attention = torch.matmul(weights[..., :columns], past_v) + torch.matmul(weights[..., columns:], v)
        return reshape(attention, (0, self.heads, -1, self.dim)).permute(0, 2, 1, 3)


class Block(nn.Module):
    """hidden [B, S, H], position_ids int32 [3, B, S], mask [B, 1, S, S] -> hidden, k, v [B, S, heads, D]."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, position_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.layer.qkv(hidden, *self.layer.rotary(position_ids))
        attention = attend(q, self.layer.repeat(k), self.layer.repeat(v), mask)
        return self.layer.finish(hidden, attention), k, v


class BlockCache(nn.Module):
    """A layer over a past: hidden [B, 1, H], position_ids [3, B, 1], mask [B, 1, 1, L + 1], past_k, past_v
    [B, L, kv heads, dim] -> hidden, and the new rows of k and v, [B, 1, kv heads, dim]. The last column of the mask is
    the token itself.

    Several slots also have recent_k, recent_v [R, B, kv heads, dim]; their columns of the mask follow the past's. The
    new rows of all slots lie together in one row of a recent input. A runner passes that row as the output, and makes
    no view for each slot. When R rows are full, `Flush` moves them to the past.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Tensor, position_ids: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor, *recent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.layer.qkv(hidden, *self.layer.rotary(position_ids))
        return self.layer.finish(hidden, self.layer.attend_fused(q, k, v, mask, (past_k, past_v), *recent)), k, v


class CpuBlock(nn.Module):
    """A layer for a CPU, which prefills and decodes: hidden [B, S, H], cos, sin [B, S, 1, dim], mask [B, 1, S, L + S],
    past_k, past_v [B, kv heads, L, dim], L = 0 at first -> hidden, and the new rows of k and v, [B, S, kv heads, dim].
    The last S columns of the mask are the tokens themselves.

    One net does both, because the runtime holds a copy of the weights for each net.
    """

    def __init__(self, layer: CpuLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.layer.qkv(hidden, cos, sin)
        return self.layer.finish(hidden, self.layer.attend(q, k, v, mask, past_k, past_v)), k, v


class Add(nn.Module):
    """hidden, features [1, S, H] -> their sum: vision features that are added after a layer."""

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        return hidden + features


class Flush(nn.Module):
    """recent_k, recent_v [R, B, kv heads, dim] -> k of each slot, then v of each, [1, R, kv heads, dim]."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, recent_k: Tensor, recent_v: Tensor) -> tuple[Tensor, ...]:
        return *recent_k.transpose(0, 1).chunk(self.batch), *recent_v.transpose(0, 1).chunk(self.batch)


class Embedding(nn.Module):
    """input_ids int32 [B, S] -> hidden [B, S, H]."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return functional.embedding(input_ids, self.weight)


class CpuEmbedding(nn.Module):
    """input_ids int32 [B, S], position_ids int32 [3, B, S] -> hidden [B, S, H], and cos, sin [B, S, 1, dim] for every
    `CpuBlock`: a CPU needs much longer for the small operators of each layer than for their arithmetic."""

    def __init__(self, embedding: Embedding, rotary: Rotary) -> None:
        super().__init__()
        self.embedding, self.rotary = embedding, rotary

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.embedding(input_ids), *self.rotary(position_ids)


class LmHead(nn.Module):
    """hidden [B, H] -> logits [B, vocabulary]; with the final norm. A tied weight stays the embedding's."""

    def __init__(self, norm: Any, weight: nn.Parameter) -> None:
        super().__init__()
        self.norm, self.weight = RMSNorm(norm), weight

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.matmul(self.norm(hidden), self.weight.t())


class GreedyHead(nn.Module):
    """logits [B, vocabulary] -> token int32 [B, 1], the argmax, the first of equals; and their sum [B, 1], which is
    finite only if they all are.

    ArgMax, as TopK is left to the chip's own processor, for which the compiler has no estimate.
    """

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return torch.argmax(logits, dim=-1, keepdim=True).int(), logits.sum(-1, keepdim=True)
