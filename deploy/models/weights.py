"""Streams parameters to a file, so that no net is in memory as a whole. The nets' parameters have no data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import BinaryIO

import onnx
import torch
from torch import Tensor

from .blocks import Blocks, quantize
from .checkpoint import Checkpoint
from .lazy import Lazy, whole

WEIGHTS = "weights.bin"
_ALIGN = 64
_SLICE = 16 * 2**20
"""The elements that are converted and written at a time: 64 MB of float32."""
_TYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.uint8: onnx.TensorProto.UINT8}


class WeightsFile:
    """The data of all nets in one file. A parameter that several nets share is written once."""

    def __init__(self, file: BinaryIO, checkpoint: Checkpoint) -> None:
        self._file, self._checkpoint = file, checkpoint
        self._end = 0
        self._stored: dict[Hashable, list[tuple[int, Tensor]]] = {}

    def initializer(self, name: str, parameter: Tensor) -> onnx.TensorProto:
        """An ONNX initializer of this name whose data, float32, are in the file."""
        ((offset, tensor),) = self._store(parameter, parameter, whole, _float32)
        return _initializer(name, offset, tensor)

    def quantized(self, name: str, parameter: Tensor, bits: int, transposed: bool) -> list[onnx.TensorProto]:
        """ONNX initializers NAME.values, NAME.scales and NAME.zeros: see `Blocks`. Its rows are those of the matrix, or
        of the matrix `transposed`."""
        turned: Callable[[Tensor], Tensor] = torch.t if transposed else whole
        stored = self._store((parameter, bits, transposed), parameter, turned, lambda rows: quantize(rows, bits))
        return [_initializer(f"{name}.{field}", *one) for field, one in zip(Blocks._fields, stored, strict=True)]

    def _store(
        self, key: Hashable, parameter: Tensor, turned: Callable[[Tensor], Tensor],
        convert: Callable[[Tensor], Sequence[Tensor]],
    ) -> list[tuple[int, Tensor]]:
        """Write what `convert` makes of a parameter's rows, slice by slice, if it is not in the file yet. Returns the
        offset of each tensor and the tensor without data."""
        if key not in self._stored:
            whole = turned(parameter.detach())
            tensors = convert(whole)
            self._stored[key] = stored = [(self._reserve(tensor), tensor) for tensor in tensors]
            step = max(1, _SLICE * len(whole) // whole.numel())
            for start in range(0, len(whole), step):
                # Open the file again for each slice: its pages count as memory while a view of it exists.
                parts = convert(turned(self._data(parameter))[start : start + step])
                for (offset, tensor), part in zip(stored, parts, strict=True):
                    self._file.seek(offset + start * (tensor.nbytes // len(tensor)))
                    self._file.write(part.contiguous().numpy().data)
        return self._stored[key]

    def _reserve(self, tensor: Tensor) -> int:
        """The offset of a new tensor."""
        offset = -(-self._end // _ALIGN) * _ALIGN
        self._end = offset + tensor.nbytes
        return offset

    def _data(self, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, Lazy):
            return self._checkpoint.tensor(parameter)
        source = parameter.source
        return parameter.derive(self._checkpoint.tensor(source) if source.is_meta else source)


def _float32(rows: Tensor) -> tuple[Tensor]:
    """Converts and transposes in one step."""
    return (rows.to(torch.float32, memory_format=torch.contiguous_format),)


def _initializer(name: str, offset: int, tensor: Tensor) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for field, value in {"location": WEIGHTS, "offset": offset, "length": tensor.nbytes}.items():
        proto.external_data.add(key=field, value=str(value))
    return proto
