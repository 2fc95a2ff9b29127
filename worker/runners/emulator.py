"""The part of `sophon.sail` that `runners.sail` uses, on the C model of the BM1684X.

Names, arguments and behaviour are SAIL's own (release 3.10), so that code which runs here runs on a box.
Where SAIL would kill the process or corrupt memory, ValueError is raised instead.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_void_p
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bmruntime import DeviceTensor, Memory, Net, Shape, Stage, library

Array = npt.NDArray[Any]
_MAX_BYTES = 2**32 - 1
_IO_ALONE = 1

DEVICE = "BM1684X emulator"


class Dtype(IntEnum):
    """bm_data_type_t."""

    BM_FLOAT32 = 0
    BM_FLOAT16 = 1
    BM_INT8 = 2
    BM_UINT8 = 3
    BM_INT16 = 4
    BM_UINT16 = 5
    BM_INT32 = 6
    BM_UINT32 = 7
    BM_BFLOAT16 = 8


_NUMPY: dict[Dtype, npt.DTypeLike] = {
    Dtype.BM_FLOAT32: np.float32, Dtype.BM_FLOAT16: np.uint16, Dtype.BM_INT8: np.int8, Dtype.BM_UINT8: np.uint8,
    Dtype.BM_INT16: np.int16, Dtype.BM_UINT16: np.uint16, Dtype.BM_INT32: np.int32, Dtype.BM_UINT32: np.uint32,
    Dtype.BM_BFLOAT16: np.uint16,
}


class SailEngineError(RuntimeError):
    """A net could not be loaded or run."""


def get_available_tpu_num() -> int:
    """One: the C model."""
    return 1


class Handle:
    """A device by its number."""

    def __init__(self, tpu_id: int) -> None:
        self.native: c_void_p = library().device(tpu_id)


class Tensor:
    """Device memory, or a view into another tensor's: `Tensor(source, shape, offset)`, offset in elements.

    A new tensor's memory is zeroed. System memory, which SAIL also offers, is not offered here: data go
    straight to the device, so `sync_s2d` and `sync_d2s` have nothing to do.
    """

    def __init__(
        self, source: Handle | Tensor, shape: Sequence[int], dtype: Dtype | int = Dtype.BM_FLOAT32,
        own_sys_data: bool = False, own_dev_data: bool = True,
    ) -> None:
        if own_sys_data or not own_dev_data:
            raise ValueError("the emulator's tensors have device memory only")
        if not shape or min(shape) < 1:
            raise ValueError(f"there is no tensor of shape {list(shape)}")
        self._shape, self._owned = list(shape), isinstance(source, Handle)
        if isinstance(source, Handle):
            self._dtype, self._handle = Dtype(dtype), source
            if self.nbytes > _MAX_BYTES:
                raise ValueError("a tensor holds less than 4 GiB")
            self.memory = Memory()
            library()("bm_malloc_device_byte", source.native, byref(self.memory), self.nbytes)
            self.update_data(np.zeros(shape, _NUMPY[self._dtype]))
        else:
            self._source: Tensor | EngineLLM = source  # kept alive
            self._dtype, self._handle = source._dtype, source._handle
            start = int(dtype) * self._itemsize
            if start < 0 or start + self.nbytes > source.nbytes:
                raise ValueError(f"a view of {list(shape)} at {int(dtype)} leaves a tensor of {source.shape()}")
            self.memory = Memory.from_buffer_copy(source.memory)
            self.memory.address += start
            self.memory.size = self.nbytes

    @classmethod
    def _of(cls, engine: EngineLLM, memory: Memory, shape: list[int], dtype: int) -> Tensor:
        """A tensor in a net's own memory, which `engine` keeps."""
        tensor = cls.__new__(cls)
        tensor._shape, tensor._dtype, tensor._owned, tensor._handle = shape, Dtype(dtype), False, engine._handle
        tensor._source = engine
        tensor.memory = Memory.from_buffer_copy(memory)
        tensor.memory.size = tensor.nbytes
        return tensor

    def __del__(self) -> None:
        if getattr(self, "memory", None) is not None and self._owned:
            library()("bm_free_device", self._handle.native, self.memory)

    @property
    def nbytes(self) -> int:
        return prod(self._shape) * self._itemsize

    @property
    def _itemsize(self) -> int:
        return np.dtype(_NUMPY[self._dtype]).itemsize

    def shape(self) -> list[int]:
        return list(self._shape)

    def dtype(self) -> Dtype:
        return self._dtype

    def update_data(self, data: Array) -> None:
        """To the device; the exact shape, half precision as uint16."""
        if list(data.shape) != self._shape or data.dtype != _NUMPY[self._dtype]:
            raise ValueError(f"{data.dtype} {list(data.shape)} is no {self._dtype.name} {self._shape}")
        array = np.ascontiguousarray(data)
        library()("bm_memcpy_s2d", self._handle.native, self.memory, array.ctypes.data)

    def asnumpy(self) -> Array:
        """A copy; half precision comes as uint16."""
        array = np.empty(self._shape, _NUMPY[self._dtype])
        library()("bm_memcpy_d2s", self._handle.native, array.ctypes.data, self.memory)
        return array

    def sync_s2d(self, size: int | None = None) -> None:
        """Nothing: there is no system memory."""

    def sync_d2s(self, size: int | None = None) -> None:
        """Nothing: there is no system memory."""

    def sync_d2d(self, source: Tensor, source_offset: int, offset: int, length: int) -> None:
        """Copy from another tensor; elements. Called on the destination."""
        size = self._itemsize
        if source._dtype != self._dtype:
            raise ValueError("a copy keeps the dtype")
        if min(source_offset, offset, length) < 0:
            raise ValueError("a copy's offsets and length are not negative")
        if (source_offset + length) * size > source.nbytes or (offset + length) * size > self.nbytes:
            raise ValueError("a copy stays within both tensors")
        library()(
            "bm_memcpy_d2d_byte", self._handle.native, self.memory, offset * size,
            source.memory, source_offset * size, length * size,
        )


class EngineLLM:
    """The nets of a bmodel on one device."""

    def __init__(self, bmodel_path: str, tpu_ids: Sequence[int]) -> None:
        if len(tpu_ids) != 1:
            raise ValueError("the emulator runs a model on one device")
        if not Path(bmodel_path).is_file():
            raise SailEngineError(f"{bmodel_path} is not there")
        self._handle, call = Handle(tpu_ids[0]), library()
        try:
            self._runtime = call("bmrt_create", self._handle.native)
            weakref.finalize(self, call, "bmrt_destroy", self._runtime)  # left to the exit, it crashes there
            call("bmrt_load_bmodel", self._runtime, bmodel_path.encode())
        except RuntimeError as error:
            raise SailEngineError(f"{bmodel_path} cannot be loaded: {error}") from None
        names = POINTER(c_char_p)()
        call("bmrt_get_network_names", self._runtime, byref(names))
        found = [names[index] or b"" for index in range(call("bmrt_get_network_number", self._runtime))]
        self._nets: dict[str, Net] = {
            name.decode(): call("bmrt_get_network_info", self._runtime, name).contents for name in found
        }

    def get_graph_names(self) -> list[str]:
        return list(self._nets)

    def get_input_shape(self, graph: str, index: int, stage: int = 0) -> list[int]:
        net = self._net(graph)
        return _dims(_stage(net, stage).input_shapes[_within(index, net.input_num)])

    def get_output_shape(self, graph: str, index: int, stage: int = 0) -> list[int]:
        net = self._net(graph)
        return _dims(_stage(net, stage).output_shapes[_within(index, net.output_num)])

    def get_input_dtype(self, graph: str, index: int) -> Dtype:
        net = self._net(graph)
        return Dtype(net.input_dtypes[_within(index, net.input_num)])

    def get_output_dtype(self, graph: str, index: int) -> Dtype:
        net = self._net(graph)
        return Dtype(net.output_dtypes[_within(index, net.output_num)])

    def get_addr_mode(self, graph: str) -> int:
        return int(self._net(graph).addr_mode)

    def get_input_tensors(self, graph: str, stage: int = 0) -> dict[int, Tensor]:
        """The inputs' own memory of a net in address mode 1, which runs on it without a copy; else none."""
        return self.get_input_tensors_addrmode0(graph, stage) if self.get_addr_mode(graph) == _IO_ALONE else {}

    def get_input_tensors_addrmode0(self, graph: str, stage: int = 0) -> dict[int, Tensor]:
        """The inputs' own memory of any net; in address mode 0 the next net's run may write over it."""
        net = self._net(graph)
        memories, shapes = _stage(net, stage).input_memories, _stage(net, stage).input_shapes
        return {
            index: Tensor._of(self, memories[index], _dims(shapes[index]), net.input_dtypes[index])
            for index in range(net.input_num)
        }

    def process(self, graph: str, inputs: Mapping[int, Tensor], outputs: Mapping[int, Tensor]) -> None:
        """Run a net from these tensors into those; returns when the device is done."""
        net = self._net(graph)
        given = _tensors(inputs, net.input_dtypes, net.input_num, f"input of {graph}")
        made = _tensors(outputs, net.output_dtypes, net.output_num, f"output of {graph}")
        stage = next((s for s in map(net.stages.__getitem__, range(net.stage_num)) if _fits(net, s, given)), None)
        if stage is None:
            shapes = [tensor.shape() for _, tensor in sorted(inputs.items())]
            raise ValueError(f"no stage of {graph} takes {shapes}")
        for index, tensor in outputs.items():
            if prod(tensor.shape()) < prod(_dims(stage.output_shapes[index])):
                raise ValueError(f"output {index} of {graph} is larger than {tensor.shape()}")
        try:
            library()(
                "bmrt_launch_tensor_ex", self._runtime, graph.encode(), given, len(given), made, len(made), True, False
            )
            library()("bm_thread_sync", self._handle.native)
        except RuntimeError as error:
            raise SailEngineError(f"{graph}: {error}") from None

    def _net(self, graph: str) -> Net:
        if graph not in self._nets:
            raise SailEngineError(f"there is no net {graph}")
        return self._nets[graph]


def _stage(net: Net, index: int) -> Stage:
    stage: Stage = net.stages[_within(index, net.stage_num)]
    return stage


def _dims(shape: Shape) -> list[int]:
    return list(shape.dims[: shape.ndim])


def _within(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise ValueError(f"there is no tensor {index}; there are {count}")
    return index


def _tensors(
    given: Mapping[int, Tensor], dtypes: Sequence[int], count: int, what: str
) -> ctypes.Array[DeviceTensor]:
    """As the runtime takes them, after what it does not check."""
    if sorted(given) != list(range(count)) or not all(isinstance(tensor, Tensor) for tensor in given.values()):
        raise ValueError(f"each {what} is given: 0 to {count - 1}")
    for index, tensor in given.items():
        if tensor.dtype() != dtypes[index]:
            raise ValueError(f"{what} {index} is {Dtype(dtypes[index]).name}, not {tensor.dtype().name}")
    result = (DeviceTensor * count)()
    for index, tensor in given.items():
        dims = tensor.shape()
        shape = Shape(len(dims), (ctypes.c_int * 8)(*dims))
        result[index] = DeviceTensor(int(tensor.dtype()), shape, tensor.memory, 0)
    return result


def _fits(net: Net, stage: Any, given: ctypes.Array[DeviceTensor]) -> bool:
    """Static: these shapes. Dynamic: no more than these."""
    for index, tensor in enumerate(given):
        most, dims = _dims(stage.input_shapes[index]), _dims(tensor.shape)
        if dims != most and not (net.is_dynamic and len(dims) == len(most) and all(map(int.__le__, dims, most))):
            return False
    return True
