"""One TPU through SAIL: the nets of a bmodel, tensors on the device, and copies between them and numpy.

All calls into SAIL on a loaded model are in this file. They work on boxes and PCIe cards: a write ends with `sync_s2d`,
and a read begins with `sync_d2s`. A box maps a net's own tensors with the cache on. The chip does not see data that is
still in the cache, and a line that is evicted late overwrites what the chip wrote meanwhile. Elsewhere both calls cost
0.3 µs.

The behaviour of each call on a box (`IS_SOC_MODE`), with its source in sophgo/sophon-sail 3.10.7 and sophgo/libsophon:

    a net's own tensors are mapped     src/engine_llm.cpp:323, src/tensor.cpp:987; bmlib/src/bmlib_memory.cpp:1531,
                                       with the cache on: driver/bm_gmem.c:166
    sync_s2d, sync_d2s of these        flush and invalidate: src/tensor.cpp:1051, :1007; driver/bm_gmem.c:188, :199
    sync_s2d, sync_d2s of others       nothing: they have no system memory, src/tensor.cpp:721, :1049
    update_data, asnumpy               system memory where there is some, else the device: src/tensor.cpp:1768, :2459
    Tensor(handle, shape, dtype)       zeroed by the chip: src/tensor.cpp:715
    Tensor(src, shape, offset)         bounds, and no mapping of its own: src/tensor.cpp:756
    sync_d2d                           elements, called on the target: src/tensor.cpp:1060
    process                            waits for the chip: src/engine_llm.cpp:439
    get_input_tensors_addrmode0        memory that nets share: tpu-runtime/src/bmruntime.cpp:299, one core's default

`update_data`, `asnumpy`, `sync_*` and `sync_d2d` do not raise when a copy fails (src/tensor.cpp:1036, :1776, :2469,
:1092): SAIL logs it, and old or random values remain. So a chosen token is checked before it is used. No call here ends
the process by `exit`, which SAIL calls in `scale_from` and `scale_to` alone (src/internal.h:166).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sailq.shared.errors import DeviceFailed

from ..model_files.bmodel import BmodelTensor

_NAMES = {"f32": "BM_FLOAT32", "f16": "BM_FLOAT16", "bf16": "BM_BFLOAT16", "i32": "BM_INT32"}


class _Call:
    """Turns any exception of SAIL into DeviceFailed. SAIL's exceptions have no common base but Exception, and
    unregistered ones arrive as RuntimeError, IndexError or ValueError."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception):
            raise _failed(self._doing, error) from error


def _failed(doing: str, error: Exception) -> DeviceFailed:
    return DeviceFailed(f"SAIL failed to {doing}: {type(error).__name__}: {error}")


class Run(NamedTuple):
    """A call of `process` with its arguments, which may be used again."""

    net: str
    inputs: dict[int, Any]
    outputs: dict[int, Any]

    @classmethod
    def of(cls, net: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Run:
        return cls(net, dict(enumerate(inputs)), dict(enumerate(outputs)))


_COUNT, _OPEN, _MAKE = _Call("count the TPUs"), _Call("load the model"), _Call("make a tensor")
_WRITE, _READ, _COPY = _Call("write a tensor"), _Call("read a tensor"), _Call("copy a tensor")


def count_tpus(sail: Any) -> int:
    """How many TPUs this machine has; raises DeviceFailed."""
    with _COUNT:
        return int(sail.get_available_tpu_num())


class Chip:
    """A bmodel on a device. SAIL does not check its arguments; `view` and `write` do. Each method raises DeviceFailed
    if SAIL raises.

    Args:
        sail: the module `sophon.sail`, or one that offers the same.
        tpu: the number of the device.
        bmodel: the file to load.
    """

    def __init__(self, sail: Any, tpu: int, bmodel: Path) -> None:
        self._sail = sail
        with _OPEN:
            self._engine, self._handle = sail.EngineLLM(str(bmodel), [tpu]), sail.Handle(tpu)
            self._dtypes = {key: getattr(sail.Dtype, name) for key, name in _NAMES.items()}
        self._shared: dict[str, Mapping[int, Any]] = {}

    def new(self, like: BmodelTensor) -> Any:
        """A zeroed tensor in device memory only, with the shape and dtype of a net's input or output."""
        dtype = self._dtypes[like.dtype]
        with _MAKE:
            return self._sail.Tensor(
                handle=self._handle, shape=list(like.shape), dtype=dtype, own_sys_data=False, own_dev_data=True
            )

    def own_inputs(self, net: str, stage: int) -> Mapping[int, Any]:
        """The input tensors that a net in address mode `IO_ALONE` owns; empty for other nets. The net runs on them
        without a copy. Nets may run on their views, but `write` needs the whole tensor: SAIL does not flush views."""
        with _MAKE:
            own: Mapping[int, Any] = self._engine.get_input_tensors(graph_name=net, stage=stage)
        return own

    def shared_inputs(self, net: str) -> Mapping[int, Any]:
        """The input tensors of a net in address mode 0. Other nets share this memory and may overwrite it. SAIL is
        asked once per net, because it logs a warning each time."""
        if net not in self._shared:
            with _MAKE:
                self._shared[net] = self._engine.get_input_tensors_addrmode0(graph_name=net)
        return self._shared[net]

    def view(self, tensor: Any, shape: Sequence[int], start: int = 0) -> Any:
        """A view of a tensor from element `start`. The tensor must outlive it. With keyword arguments, SAIL finds the
        right one of its ten constructors at once."""
        if start < 0 or start + prod(shape) > prod(tensor.shape()):
            raise ValueError(f"{list(shape)} from {start} is not within {tensor.shape()}")
        with _MAKE:
            return self._sail.Tensor(src=tensor, shape=list(shape), offset=start)

    def write(self, tensor: Any, values: npt.NDArray[Any]) -> None:
        """Write `values`, which have the tensor's size, in its dtype, and flush them. All writes go through here."""
        data = self._encode(values.reshape(tensor.shape()), tensor.dtype())
        with _WRITE:
            tensor.update_data(data)
            tensor.sync_s2d()

    def read(self, tensor: Any) -> npt.NDArray[Any]:
        """Read a tensor: as int32 if it is int32, else as float32."""
        with _READ:
            tensor.sync_d2s()
            values: npt.NDArray[Any] = tensor.asnumpy()
        dtype = tensor.dtype()
        if dtype == self._dtypes["f16"]:
            return values.view(np.float16).astype(np.float32)
        if dtype == self._dtypes["bf16"]:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def copy(self, source: Any, start: int, target: Any, place: int, length: int) -> None:
        """Copy `length` elements from `start` of `source` to `place` of `target`, on the device."""
        with _COPY:
            target.sync_d2d(source, start, place, length)

    def run(self, net: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Run a net from these tensors into those; returns when the device is done."""
        self.run_all([Run.of(net, inputs, outputs)])

    def run_all(self, runs: Sequence[Run]) -> None:
        """Run nets one after the other; returns when the device is done with the last."""
        process = self._engine.process
        for net, inputs, outputs in runs:
            try:
                process(net, inputs, outputs)
            except Exception as error:
                raise _failed(f"run {net}", error) from error

    def encode(self, values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
        """The values in the form that SAIL takes for a bmodel's tensor of this dtype. `write` takes that form too."""
        return self._encode(values, self._dtypes[dtype])

    def zeros(self, size: int, dtype: str) -> Any:
        """A tensor of `size` zeros."""
        return self.new(BmodelTensor("zeros", (size,), dtype))

    def _encode(self, values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
        """The values in the form that SAIL takes: half precision as uint16."""
        if values.dtype == np.uint16:
            return values
        if dtype == self._dtypes["f16"]:
            return values.astype(np.float16).view(np.uint16)
        if dtype == self._dtypes["bf16"]:  # round to nearest, ties to even
            bits = values.astype(np.float32).view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.ascontiguousarray(values, np.int32 if dtype == self._dtypes["i32"] else np.float32)
