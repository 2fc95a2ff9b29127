"""Matrices of 8 or 4 bits a weight, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""The weights of a row that share a scale and a zero point."""


class Blocks(NamedTuple):
    """A quantised matrix [rows, inputs]: a weight is (value - zero point of its block) × scale of its block.

    Attributes:
        values: uint8 [rows, blocks, BLOCK × bits / 8]; with 4 bits, the first of two weights is in the low half.
        scales: float32 [rows, blocks].
        zeros: uint8 [rows, blocks × bits / 8, rounded up], packed as the values.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor


def quantize(matrix: Tensor, bits: int) -> Blocks:
    """Round a matrix to the smallest range of each block that holds its weights and 0. A short last block is filled
    with 0."""
    filled = functional.pad(matrix.float(), (0, -matrix.shape[1] % BLOCK)).reshape(len(matrix), -1, BLOCK)
    most = 2**bits - 1
    low, high = filled.amin(-1).clamp(max=0), filled.amax(-1).clamp(min=0)
    scales = (high - low) / most
    scales = scales.where(scales > 0, 1)
    zeros = (-low / scales).round()
    values = (filled / scales[..., None]).round_().add_(zeros[..., None]).clamp_(0, most)
    return Blocks(_packed(values, bits), scales, _packed(zeros, bits))


def _packed(values: Tensor, bits: int) -> Tensor:
    """Whole numbers [..., n] as bytes."""
    whole = values.to(torch.uint8)
    if bits == 8:
        return whole
    whole = functional.pad(whole, (0, whole.shape[-1] % 2))
    return whole[..., ::2] | whole[..., 1::2] << 4
