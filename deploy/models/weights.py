"""Streams parameters to a file, so that no net is in memory as a whole. The nets' parameters have no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import onnx
import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint

WEIGHTS = "weights.bin"
_ALIGN = 64
_SLICE = 16 * 2**20
"""The elements that are converted and written at a time: 64 MB of float32."""


def _whole(source: Tensor) -> Tensor:
    return source


class Lazy(nn.Parameter):
    """A parameter on the `meta` device. `derive` computes its data from those of `source` when they are written.

    `source` is a parameter of a checkpoint's model, or a tensor with data. Small results may be computed;
    large ones should be views.
    """

    source: Tensor
    derive: Callable[[Tensor], Tensor]

    def __new__(cls, source: Tensor, derive: Callable[[Tensor], Tensor] = _whole) -> Lazy:
        parameter: Lazy = super().__new__(cls, derive(source.detach().to("meta")), requires_grad=False)
        parameter.source, parameter.derive = source, derive
        return parameter


class WeightsFile:
    """The data of all nets in one file, as float32. A parameter that several nets share is written once."""

    def __init__(self, file: BinaryIO, checkpoint: Checkpoint) -> None:
        self._file, self._checkpoint = file, checkpoint
        self._offsets: dict[Tensor, int] = {}

    def initializer(self, name: str, parameter: Tensor) -> onnx.TensorProto:
        """An ONNX initializer of this name whose data are in the file."""
        if parameter not in self._offsets:
            self._offsets[parameter] = self._write(parameter)
        proto = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=parameter.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": WEIGHTS, "offset": self._offsets[parameter], "length": 4 * parameter.numel()}
        for field, value in place.items():
            proto.external_data.add(key=field, value=str(value))
        return proto

    def _write(self, parameter: Tensor) -> int:
        """Write a parameter's data in slices, and return where they are."""
        offset = self._file.seek(-(-self._file.tell() // _ALIGN) * _ALIGN)
        rows = max(1, _SLICE * len(parameter) // parameter.numel())
        for start in range(0, len(parameter), rows):
            # Open the file again for each slice: its pages count as memory while a view of it exists.
            part = self._data(parameter)[start : start + rows]
            data = part.to(torch.float32, memory_format=torch.contiguous_format)  # transposes and converts in one step
            self._file.write(data.contiguous().numpy().data)
        return offset

    def _data(self, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, Lazy):
            return self._checkpoint.tensor(parameter)
        source = parameter.source
        return parameter.derive(self._checkpoint.tensor(source) if source.is_meta else source)
