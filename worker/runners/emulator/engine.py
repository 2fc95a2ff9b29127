"""SAIL's EngineLLM on BMRuntime. It behaves as SAIL's `src/engine_llm.cpp` does."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sailq.shared.errors import Unsupported

from ...model_files.bmodel import read_bmodel
from .bmruntime import DeviceTensor, Memory, Net, Shape, Stage, library
from .errors import SailEngineError
from .tensor import Dtype, Handle, Tensor

_IO_ALONE = 1
_BLOCK = 1 << 28
"""Bytes."""
_ROUNDING = 1 << 22
"""Bytes by which loading may take more than the file states: each piece begins on a page of its own."""


class EngineLLM:
    """The nets of a bmodel on one device: `EngineLLM(bmodel_path, tpu_ids)`, `EngineLLM(bmodel_path, flags, tpu_ids)`
    or `EngineLLM(bmodel_bytes=, bmodel_size=, tpu_ids=)`. Their memory starts with random bytes, NaNs among them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        if "bmodel_bytes" in named:
            self._load_bytes(*given, **named)
        elif "flags" in named or len(given) > 2:
            self._load_with_flags(*given, **named)
        else:
            self._load(*given, **named)

    def _load_with_flags(self, bmodel_path: str, flags: int, tpu_ids: Sequence[int]) -> None:
        self._load(bmodel_path, tpu_ids)  # nets always share memory, whatever the flags are, as on a box

    def _load(self, bmodel_path: str, tpu_ids: Sequence[int]) -> None:
        if not os.path.exists(bmodel_path):
            raise SailEngineError("EngineLLM bmodel error!")
        try:
            size = read_bmodel(Path(bmodel_path)).unshared_bytes
        except Unsupported:
            size = 0  # it will not load
        self._open(tpu_ids, size, "bmrt_load_bmodel", bmodel_path.encode())

    def _load_bytes(self, bmodel_bytes: bytes, bmodel_size: int, tpu_ids: Sequence[int]) -> None:
        if len(bmodel_bytes) != bmodel_size:
            raise SailEngineError("EngineLLM related error!")
        self._open(tpu_ids, bmodel_size, "bmrt_load_bmodel_data", bmodel_bytes, bmodel_size)

    def _open(self, tpu_ids: Sequence[int], size: int, load: str, *what: Any) -> None:
        """Opens the device and loads a bmodel on it. `size`: bytes of device memory that loading takes."""
        if not tpu_ids:
            raise SailEngineError("EngineLLM device_ids error!")
        if len(tpu_ids) > 1:
            raise ValueError("the emulator runs a model on one device")
        self._handle, call = Handle(tpu_ids[0]), library()
        _litter(self._handle, size)
        self._runtime = call("bmrt_create", self._handle.native)
        weakref.finalize(self, call, "bmrt_destroy", self._runtime)  # destroying it at exit crashes
        try:
            call(load, self._runtime, *what)
        except RuntimeError:
            raise SailEngineError("EngineLLM related error!") from None
        names = POINTER(c_char_p)()
        call("bmrt_get_network_names", self._runtime, byref(names))
        found = [names[index] or b"" for index in range(call("bmrt_get_network_number", self._runtime))]
        self._nets: dict[str, Net] = {
            name.decode(): call("bmrt_get_network_info", self._runtime, name).contents for name in found
        }
        for net in self._nets.values():
            for stage in net.stages[: net.stage_num] if net.addr_mode == _IO_ALONE else ():
                self._inputs(net, stage)
                self._outputs(net, stage)

    def get_graph_names(self) -> list[str]:
        return list(self._nets)

    def get_input_shape(self, graph_name: str, index: int, stage: int = 0) -> list[int]:
        net = self._net(graph_name)
        return _dims(_stage(net, stage).input_shapes[_within(index, net.input_num)])

    def get_output_shape(self, graph_name: str, index: int, stage: int = 0) -> list[int]:
        net = self._net(graph_name)
        return _dims(_stage(net, stage).output_shapes[_within(index, net.output_num)])

    def get_input_dtype(self, graph_name: str, index: int) -> Dtype:
        net = self._net(graph_name)
        return Dtype(net.input_dtypes[_within(index, net.input_num)])

    def get_output_dtype(self, graph_name: str, index: int) -> Dtype:
        net = self._net(graph_name)
        return Dtype(net.output_dtypes[_within(index, net.output_num)])

    def get_addr_mode(self, graph_name: str) -> int:
        return int(self._net(graph_name).addr_mode)

    def get_input_tensors(self, graph_name: str, stage: int = 0) -> dict[int, Tensor]:
        """The input tensors that a net in address mode 1 owns; empty for other nets. The net runs on them without a
        copy."""
        alone = self.get_addr_mode(graph_name) == _IO_ALONE
        return self.get_input_tensors_addrmode0(graph_name, stage) if alone else {}

    def get_input_tensors_addrmode0(self, graph_name: str, stage: int = 0) -> dict[int, Tensor]:
        """The input tensors of any net. In address mode 0 the next net's run may overwrite them."""
        net = self._net(graph_name)
        return self._inputs(net, _stage(net, stage))

    def _inputs(self, net: Net, stage: Stage) -> dict[int, Tensor]:
        return self._mapped(net.input_num, stage.input_memories, stage.input_shapes, net.input_dtypes)

    def _outputs(self, net: Net, stage: Stage) -> dict[int, Tensor]:
        return self._mapped(net.output_num, stage.output_memories, stage.output_shapes, net.output_dtypes)

    def _mapped(
        self, count: int, memories: Sequence[Memory], shapes: Sequence[Shape], dtypes: Sequence[int]
    ) -> dict[int, Tensor]:
        """Tensors in a net's own memory. SAIL maps those of a net in address mode 1 when it loads the file, and others
        on first use. Raises RuntimeError if memory cannot be mapped."""
        return {
            index: Tensor.of_net(self._handle, self, memories[index], _dims(shapes[index]), dtypes[index])
            for index in range(count)
        }

    def process(
        self, graph_name: str, input: Mapping[int, Tensor], output: Mapping[int, Tensor],
        core_list: Sequence[int] = (0,),
    ) -> None:
        """Run a net from these tensors into those; returns when the device is done."""
        net = self._net(graph_name)
        given = _tensors(input, net.input_dtypes, net.input_num, f"input of {graph_name}")
        made = _tensors(output, net.output_dtypes, net.output_num, f"output of {graph_name}")
        stage = next((s for s in map(net.stages.__getitem__, range(net.stage_num)) if _fits(net, s, given)), None)
        if stage is None:
            shapes = [tensor.shape() for _, tensor in sorted(input.items())]
            raise ValueError(f"no stage of {graph_name} takes {shapes}")
        for index, tensor in output.items():
            if prod(tensor.shape()) < prod(_dims(stage.output_shapes[index])):
                raise ValueError(f"output {index} of {graph_name} is larger than {tensor.shape()}")
        try:
            library()(
                "bmrt_launch_tensor_ex", self._runtime, graph_name.encode(), given, len(given), made, len(made), True,
                True,
            )
            library()("bm_thread_sync", self._handle.native)
        except RuntimeError:
            raise SailEngineError("Engine related error!") from None
        for tensor in output.values():
            self._handle.cache.chip_wrote(tensor.address, tensor.nbytes())

    def _net(self, graph_name: str) -> Net:
        if graph_name not in self._nets:
            raise IndexError("map::at")
        return self._nets[graph_name]


def _litter(handle: Handle, size: int) -> None:
    """Fill the memory that is allocated next with random bytes, as earlier programs leave it: each 32nd half-precision
    number is then NaN or infinite. The runtime clears no memory, and a NaN passes through any mask."""
    random, blocks = np.random.default_rng(0), []
    try:
        for start in range(0, size + _ROUNDING, _BLOCK):
            block = handle.allocate(min(_BLOCK, size + _ROUNDING - start))
            blocks.append(block)
            handle.store(block.address, random.bytes(block.size))
    except RuntimeError:
        pass  # not enough memory: loading will raise
    for block in blocks:
        handle.free(block)


def _stage(net: Net, index: int) -> Stage:
    stage: Stage = net.stages[_within(index, net.stage_num)]
    return stage


def _dims(shape: Shape) -> list[int]:
    return list(shape.dims[: shape.ndim])


def _within(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise ValueError(f"there is no tensor {index}: the net has {count}")
    return index


def _tensors(
    given: Mapping[int, Tensor], dtypes: Sequence[int], count: int, what: str
) -> ctypes.Array[DeviceTensor]:
    """Check the tensors, which the runtime does not do, and convert them for it."""
    if sorted(given) != list(range(count)) or not all(isinstance(tensor, Tensor) for tensor in given.values()):
        raise ValueError(f"a tensor must be given for each {what}, 0 to {count - 1}")
    for index, tensor in given.items():
        if tensor.dtype() != dtypes[index]:
            raise ValueError(f"{what} {index} is {Dtype(dtypes[index]).name}, not {tensor.dtype().name}")
    result = (DeviceTensor * count)()
    for index, tensor in given.items():
        dims = tensor.shape()
        shape = Shape(len(dims), (ctypes.c_int * 8)(*dims))
        result[index] = DeviceTensor(int(tensor.dtype()), shape, tensor.native(), 0)
    return result


def _fits(net: Net, stage: Any, given: ctypes.Array[DeviceTensor]) -> bool:
    """Whether a stage takes these shapes: a static net exactly its own, a dynamic one none that is larger."""
    for index, tensor in enumerate(given):
        most, dims = _dims(stage.input_shapes[index]), _dims(tensor.shape)
        if dims != most and not (net.is_dynamic and len(dims) == len(most) and all(map(int.__le__, dims, most))):
            return False
    return True
