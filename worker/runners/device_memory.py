"""Tensors on a SAIL device, and numbers between them and numpy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .bmodel import BmodelTensor

_NAMES = {"f32": "BM_FLOAT32", "f16": "BM_FLOAT16", "bf16": "BM_BFLOAT16", "i32": "BM_INT32"}


class DeviceMemory:
    """Makes tensors of one device. SAIL does not check what it is told here; `view` and `write` do.

    Args:
        sail: the module `sophon.sail`, or one that offers the same.
        tpu: the number of the device.
    """

    def __init__(self, sail: Any, tpu: int) -> None:
        self._sail, self._handle = sail, sail.Handle(tpu)
        self._dtypes = {key: getattr(sail.Dtype, name) for key, name in _NAMES.items()}

    def new(self, like: BmodelTensor) -> Any:
        """Device memory alone, zeroed, for an input or output of a net."""
        return self._sail.Tensor(self._handle, list(like.shape), self._dtypes[like.dtype], False, True)

    def view(self, tensor: Any, shape: Sequence[int], start: int = 0) -> Any:
        """A part of a tensor that must outlive it, from element `start`."""
        return self.views(tensor, shape, [start])[0]

    def views(self, tensor: Any, shape: Sequence[int], starts: Collection[int]) -> list[Any]:
        """Parts of one tensor, checked together: a step of a 7B with 8 slots takes 448 of them."""
        if min(starts) < 0 or max(starts) + prod(shape) > prod(tensor.shape()):
            raise ValueError(f"{list(shape)} from {sorted(starts)} is not within {tensor.shape()}")
        dims = list(shape)
        return [self._sail.Tensor(tensor, dims, start) for start in starts]

    def write(self, tensor: Any, values: npt.NDArray[Any]) -> None:
        """Values of the tensor's size, in its own dtype."""
        tensor.update_data(self._encode(values.reshape(tensor.shape()), tensor.dtype()))

    def read(self, tensor: Any) -> npt.NDArray[Any]:
        """int32 of an int32 tensor, float32 of any other."""
        values: npt.NDArray[Any] = tensor.asnumpy()
        dtype = tensor.dtype()
        if dtype == self._dtypes["f16"]:
            return values.view(np.float16).astype(np.float32)
        if dtype == self._dtypes["bf16"]:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def _encode(self, values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
        """As SAIL takes them: half precision as uint16."""
        if dtype == self._dtypes["f16"]:
            return values.astype(np.float16).view(np.uint16)
        if dtype == self._dtypes["bf16"]:  # to nearest, ties to even
            bits = values.astype(np.float32).view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.ascontiguousarray(values, np.int32 if dtype == self._dtypes["i32"] else np.float32)
