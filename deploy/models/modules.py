"""Linear layers, norm, rotary embedding and attention in the forms that the TPU compiler fuses.

Attention is Permute, MatMul, Mul, Add, Softmax, MatMul, Permute on [batch, length, heads, dim].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lazy import Lazy


def floats(*shape: int) -> Tensor:
    """A tensor without data, for tracing."""
    return torch.empty(shape, device="meta")


def ints(*shape: int) -> Tensor:
    """An int32 tensor without data, for tracing."""
    return torch.empty(shape, dtype=torch.int32, device="meta")


class Linear(nn.Module):
    """y = x W + b with W stored [in, out], so that the graph needs no Transpose."""

    def __init__(self, weight: Lazy, bias: Lazy | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    @classmethod
    def of(cls, linear: Any, part: int = 0, parts: int = 1) -> Linear:
        """torch's Linear, or one of equal parts of its outputs."""
        bias = None if linear.bias is None else Lazy(linear.bias, lambda b: b.chunk(parts)[part])
        return cls(Lazy(linear.weight, lambda w: w.chunk(parts)[part].t()), bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class LongLinear(nn.Module):
    """y = x W as a sum over parts of x.

    With weights of 4 bits, TPU-MLIR stores the scales of a MatMul of more than 256 groups of inputs in almost twice the
    space, and a decode step reads them all: a 7B's down_proj, of 296 groups, takes 7 % longer in one part than in two.
    """

    GROUP, GROUPS = 64, 256

    def __init__(self, linear: Any) -> None:
        super().__init__()
        groups = math.ceil(linear.in_features / self.GROUP)
        most = self.GROUP * math.ceil(groups / math.ceil(groups / self.GROUPS))
        self.sizes = [min(most, linear.in_features - start) for start in range(0, linear.in_features, most)]
        self.parts = nn.ModuleList(Linear(self._rows(linear.weight, part), None) for part in range(len(self.sizes)))

    @classmethod
    def of(cls, linear: Any) -> nn.Module:
        """torch's Linear without bias, in parts where it is that long."""
        return cls(linear) if linear.in_features > cls.GROUP * cls.GROUPS else Linear.of(linear)

    def _rows(self, weight: Tensor, part: int) -> Lazy:
        return Lazy(weight, lambda w: torch.split_with_sizes(w, self.sizes, dim=1)[part].t())

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split_with_sizes(x, self.sizes, dim=-1)
        first, *others = (part(piece) for part, piece in zip(self.parts, pieces, strict=True))
        y: Tensor = sum(others, start=first)
        return y


class RMSNorm(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form of GPT-NeoX; cos and sin broadcast against x."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √dim + mask) v; q [B, M, heads, dim], k, v [B, L, heads, dim], mask [B, 1, M, L]."""
    scores = torch.matmul(q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1)) * (1 / math.sqrt(q.shape[-1]))
    weights = functional.softmax(scores + mask, dim=-1)
    return torch.matmul(weights, v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x.reshape([size or x.shape[axis] for axis, size in enumerate(sizes)])

    @staticmethod
    def symbolic(g: Any, x: Any, sizes: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(sizes)))


def reshape(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """`x.reshape(sizes)`, where 0 is the size of the same axis of `x`, as in ONNX. Traced, the sizes are constants;
    torch's own reshape to open sizes takes several operators to compute them. One size must be -1."""
    result: Tensor = _Reshape.apply(x, sizes)  # type: ignore[no-untyped-call]
    return result
