"""Stands in for `sophon.sail` and a BM1684X where only time counts: tensors have no contents, and a call takes the time
that the real module's takes.

The times of calls were measured on one x86 core at 2.3 GHz with sophon-sail 3.10.7's pybind module. As in that module,
`process` releases the GIL while the chip works, and all else holds it. The time that Python needs to enter a method
here is part of the method's.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

VIEW, UPDATE, UPDATE_BYTE, READ, SYNC, SHAPE, DTYPE, COPY = 3e-6, 3e-6, 4.1e-11, 5e-6, 3e-7, 3e-7, 5e-7, 13e-6
"""Seconds of a call, and UPDATE_BYTE of each byte of it."""
PROCESS = np.interp(range(200), (1, 3, 17, 33, 129), (1.1e-6, 1.3e-6, 2.9e-6, 4.8e-6, 17.9e-6)).tolist()
"""Seconds of `process` without its launch, by the number of outputs."""


class Dtype(IntEnum):
    BM_FLOAT32 = 0
    BM_FLOAT16 = 1
    BM_INT32 = 6
    BM_BFLOAT16 = 8


_NUMPY = {Dtype.BM_FLOAT32: np.float32, Dtype.BM_FLOAT16: np.uint16, Dtype.BM_INT32: np.int32,
          Dtype.BM_BFLOAT16: np.uint16}


def _library() -> Path:
    out = Path(tempfile.mkdtemp(prefix="sailq-bench-")) / "timed_sail.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(out), str(Path(__file__).with_suffix(".c"))], check=True)
    return out


class TimedSail:
    """The module, for nets that take these times.

    Attributes:
        launched: seconds that the chip has worked.
        calls: how often each call was made.
    """

    DEVICE, Dtype = "a BM1684X's times", Dtype

    def __init__(self, seconds: Mapping[str, float], token: int) -> None:
        """`seconds`: of a launch, by the net's name. `token`: what greedy_head chooses."""
        library = _library()
        loaded = ctypes.PyDLL(str(library))
        self._hold, self.launch = loaded.hold, loaded.launch
        self._hold.argtypes, self._hold.restype = [ctypes.c_double], None
        self.launch.argtypes, self.launch.restype = [ctypes.c_double, ctypes.c_double], ctypes.c_double
        self.seconds, self._token = seconds, token
        self.launched, self.calls = 0.0, Counter[str]()

    def take(self, call: str, seconds: float, began: float) -> None:
        self.calls[call] += 1
        self._hold(began + seconds)

    def get_available_tpu_num(self) -> int:
        return 1

    def Handle(self, tpu_id: int) -> int:  # noqa: N802 (SAIL's name)
        return tpu_id

    def EngineLLM(self, bmodel_path: str, tpu_ids: Sequence[int]) -> _Engine:  # noqa: N802 (SAIL's name)
        return _Engine(self)

    def Tensor(self, **given: Any) -> _Tensor:  # noqa: N802 (SAIL's name)
        began = perf_counter()
        if source := given.get("src"):
            self.take("view", VIEW, began)
            return _Tensor(self, given["shape"], source.kind)
        return _Tensor(self, given["shape"], given["dtype"])

    def own(self, graph: str, launches: int = 500) -> float:
        """Seconds that this module itself adds to a launch, because sleeping and waking up take time."""
        engine, tensors, launched = _Engine(self), dict.fromkeys(range(3)), self.launched
        began = perf_counter()
        for _ in range(launches):
            engine.process(graph, tensors, tensors)
        return (perf_counter() - began - (self.launched - launched)) / launches - PROCESS[len(tensors)]

    def contents(self, shape: Sequence[int], kind: Dtype) -> np.ndarray[Any, Any]:
        return np.full(shape, self._token if kind == Dtype.BM_INT32 else 0, _NUMPY[kind])


class _Tensor:
    def __init__(self, sail: TimedSail, shape: Sequence[int], kind: Dtype) -> None:
        self._sail, self._shape, self.kind = sail, list(shape), kind

    def shape(self) -> list[int]:
        self._sail.take("shape", SHAPE, perf_counter())
        return self._shape

    def dtype(self) -> Dtype:
        self._sail.take("dtype", DTYPE, perf_counter())
        return self.kind

    def update_data(self, data: np.ndarray[Any, Any]) -> None:
        began = perf_counter()
        assert list(data.shape) == self._shape and data.dtype == _NUMPY[self.kind]
        self._sail.take("update_data", UPDATE + UPDATE_BYTE * data.nbytes, began)

    def asnumpy(self) -> np.ndarray[Any, Any]:
        began = perf_counter()
        values = self._sail.contents(self._shape, self.kind)
        self._sail.take("asnumpy", READ, began)
        return values

    def sync_s2d(self, size: int = 0) -> None:
        self._sail.take("sync", SYNC, perf_counter())

    def sync_d2s(self, size: int = 0) -> None:
        self._sail.take("sync", SYNC, perf_counter())

    def sync_d2d(self, src: _Tensor, offset_src: int, offset_dst: int, length: int) -> None:
        began = perf_counter()
        assert offset_src + length <= prod(src._shape) and offset_dst + length <= prod(self._shape)
        self._sail.take("copy", COPY, began)


class _Engine:
    def __init__(self, sail: TimedSail) -> None:
        self._sail = sail

    def get_input_tensors(self, graph_name: str, stage: int = 0) -> dict[int, Any]:
        return {}

    def get_input_tensors_addrmode0(self, graph_name: str) -> dict[int, Any]:
        return {}

    def process(self, graph: str, inputs: Mapping[int, Any], outputs: Mapping[int, Any]) -> None:
        began, sail = perf_counter(), self._sail
        sail.calls["process"] += 1
        sail.launched += sail.launch(began + PROCESS[len(outputs)], sail.seconds[graph])
