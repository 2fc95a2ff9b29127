"""SAIL's Handle and Tensor. They behave as SAIL's `src/tensor.cpp` does when built for a box."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import byref, c_void_p
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .bmruntime import Memory, library
from .cache import Cache
from .errors import SailDeviceError, SailTensorError

Array = npt.NDArray[Any]
_MAX_BYTES = 2**32 - 1
_PAGE = 4096
"""Bytes in a memory page of a box's kernel."""


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


class Handle:
    """A device, given by its number, 0. `cache`: the host's cache of all of its memory."""

    def __init__(self, tpu_id: int) -> None:
        if tpu_id != 0:
            raise SailDeviceError("init device failure")
        self.native: c_void_p = library().device(tpu_id)
        self.cache = _cache(tpu_id)

    def load(self, address: int, size: int) -> bytes:
        """Reads the device's memory without the cache."""
        data = ctypes.create_string_buffer(size)
        library()("bm_memcpy_d2s", self.native, data, Memory(address=address, size=size))
        return data.raw

    def store(self, address: int, data: bytes) -> None:
        """Writes to the device's memory without the cache."""
        library()("bm_memcpy_s2d", self.native, Memory(address=address, size=len(data)), data)

    def allocate(self, size: int) -> Memory:
        """Allocates device memory without clearing it. Raises RuntimeError if it is full."""
        memory = Memory()
        library()("bm_malloc_device_byte", self.native, byref(memory), size)
        return memory

    def free(self, memory: Memory) -> None:
        library()("bm_free_device", self.native, memory)


@functools.cache
def _cache(tpu_id: int) -> Cache:
    return Cache(lambda address, size: Handle(tpu_id).load(address, size),
                 lambda address, data: Handle(tpu_id).store(address, data))


class Tensor:
    """Device memory, `Tensor(handle, shape, dtype, own_sys_data, own_dev_data)`, or a view into another tensor's,
    `Tensor(src, shape, offset)`, offset in elements.

    A new tensor's memory is zeroed. A tensor with system memory, and each of a net's own tensors, is *mapped*: the host
    reads and writes it through its cache. A view of a mapped tensor shares the system memory but is not mapped itself:
    its `sync_s2d` copies from the cache to the device and leaves the lines dirty, and its `sync_d2s` makes them dirty.
    """

    address: int
    _mapped: bool
    _cached: bool
    _memory: Memory | None
    _source: Any

    def __init__(self, *given: Any, **named: Any) -> None:
        if "src" in named or (given and isinstance(given[0], Tensor)):
            self._view(*given, **named)
        else:
            self._make(*given, **named)

    def _make(
        self, handle: Handle, shape: Sequence[int], dtype: Dtype, own_sys_data: bool = False,
        own_dev_data: bool = False,
    ) -> None:
        if not own_dev_data:
            raise ValueError("a net would crash on a tensor without device memory: set own_dev_data=True")
        if not shape or min(shape) < 1:
            raise ValueError(f"a tensor cannot have the shape {list(shape)}")
        self._set(handle, list(shape), Dtype(dtype), own_sys_data)
        if self.nbytes() > _MAX_BYTES:
            raise ValueError("a tensor must be smaller than 4 GiB")
        try:
            self._memory = handle.allocate(self.nbytes())
        except RuntimeError:
            raise RuntimeError("no enough device memory") from None
        self.address = int(self._memory.address)
        handle.store(self.address, bytes(self.nbytes()))

    def _view(self, src: Tensor, shape: Sequence[int], offset: int, no_copy: bool = True) -> None:
        if not no_copy:
            raise SailTensorError("not supported")
        if not shape or min(shape) < 1:
            raise SailTensorError("invalid shape")
        self._set(src.handle, list(shape), src.dtype(), False)
        self._cached, self._source = src._cached, src  # keeps it alive
        start = offset * self.element_size()
        if start < 0:
            raise ValueError(f"a view cannot start at {offset}")
        if start + self.nbytes() > src.nbytes():
            raise SailTensorError("size out of range")
        self.address = src.address + start

    @classmethod
    def of_net(cls, handle: Handle, keeper: Any, memory: Memory, shape: list[int], dtype: int) -> Tensor:
        """A mapped tensor in a net's own memory, which starts on a page. `keeper`: the object that owns the memory."""
        if memory.address % _PAGE:  # libsophon's bm_mem_mmap_device_mem, and what SAIL's reset_dev_data makes of it
            raise RuntimeError("bmlib api fail")
        tensor = cls.__new__(cls)
        tensor._set(handle, shape, Dtype(dtype), True)
        if memory.size < tensor.nbytes():
            raise ValueError(f"{memory.size} bytes are mapped for a tensor of {tensor.nbytes()}")
        tensor._source, tensor.address = keeper, int(memory.address)
        return tensor

    def _set(self, handle: Handle, shape: list[int], dtype: Dtype, mapped: bool) -> None:
        self.handle, self._shape, self._dtype = handle, shape, dtype
        self._mapped, self._cached = mapped, mapped
        self._memory, self._source = None, None

    def __del__(self) -> None:
        if getattr(self, "_memory", None) is not None:
            assert self._memory is not None
            if self._mapped:
                self.handle.cache.invalidate(self.address, self.nbytes())
            self.handle.free(self._memory)

    def shape(self) -> list[int]:
        return list(self._shape)

    def dtype(self) -> Dtype:
        return self._dtype

    def element_size(self) -> int:
        return np.dtype(_NUMPY[self._dtype]).itemsize

    def nbytes(self) -> int:
        return prod(self._shape) * self.element_size()

    def update_data(self, data: Array) -> None:
        """Writes to system memory if the tensor has some, else to the device. `data`: the exact shape; half precision
        as uint16."""
        if list(data.shape) != self._shape:
            raise SailTensorError("invalid argument")
        if data.dtype != _NUMPY[self._dtype]:
            raise SailTensorError("Wrong dtype of input array!")
        if self._cached:
            self.handle.cache.write(self.address, data.tobytes())
        else:
            self.handle.store(self.address, data.tobytes())

    def asnumpy(self) -> Array:
        """Copies system memory if the tensor has some, else device memory. Half precision is returned as uint16."""
        load = self.handle.cache.read if self._cached else self.handle.load
        values: Array = np.empty(self._shape, _NUMPY[self._dtype])
        values.data.cast("B")[:] = load(self.address, self.nbytes())
        return values

    def sync_s2d(self, size: int | None = None) -> None:
        """Copies `size` bytes, or all, from system memory to the device. Does nothing without system memory."""
        size = self.nbytes() if size is None else size
        if self._mapped:
            self.handle.cache.flush(self.address, size)
        elif self._cached:
            self.handle.store(self.address, self.handle.cache.read(self.address, size))

    def sync_d2s(self, size: int | None = None) -> None:
        """Copies `size` bytes, or all, from the device to system memory. Does nothing without system memory."""
        size = self.nbytes() if size is None else size
        if self._mapped:
            self.handle.cache.invalidate(self.address, size)
        elif self._cached:
            self.handle.cache.write(self.address, self.handle.load(self.address, size))

    def sync_d2d(self, src: Tensor, offset_src: int, offset_dst: int, len: int) -> None:
        """Copies from another tensor to this one, on the device. Offsets and length are in elements."""
        if src._dtype != self._dtype:
            raise SailTensorError("mismatch Tensor")
        if min(offset_src, offset_dst, len) < 0:
            raise ValueError("a copy's offsets and length must not be negative")
        if offset_src + len > prod(src._shape) or offset_dst + len > prod(self._shape):
            raise SailTensorError("size out of range")
        size = self.element_size()
        library()(
            "bm_memcpy_d2d_byte", self.handle.native, self.native(), offset_dst * size,
            src.native(), offset_src * size, len * size,
        )
        self.handle.cache.chip_wrote(self.address + offset_dst * size, len * size)

    def native(self) -> Memory:
        """The tensor as BMRuntime's C struct."""
        return Memory(address=self.address, size=self.nbytes())
