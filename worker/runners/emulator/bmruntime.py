"""BMRuntime's C interface through ctypes, on the C model of the BM1684X that the package tpu_mlir ships."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_int, c_size_t, c_uint, c_ulong, c_void_p
from pathlib import Path
from typing import Any

from sailq.shared.errors import Unsupported

_ENVIRONMENT = "TPU_ENV"
_LINKS = {  # bmlib opens `libcmodel.so` in its own folder; the package's file there is for another chip
    "libcmodel.so": "libcmodel_bm1684x.so",
    "libbmlib.so.0": "libbmlib.so.0",
    "libbmrt.so": "libbmrt.so",
}


class Memory(Structure):
    """bm_device_mem_t."""

    _fields_ = [("address", c_ulong), ("reserved", c_uint), ("dmabuf", c_int), ("flags", c_uint), ("size", c_uint)]


class Shape(Structure):
    """bm_shape_t."""

    _fields_ = [("ndim", c_int), ("dims", c_int * 8)]


class DeviceTensor(Structure):
    """bm_tensor_t."""

    _fields_ = [("dtype", c_int), ("shape", Shape), ("memory", Memory), ("store", c_int)]


class Stage(Structure):
    """bm_stage_info_t."""

    _fields_ = [
        ("input_shapes", POINTER(Shape)), ("output_shapes", POINTER(Shape)),
        ("input_memories", POINTER(Memory)), ("output_memories", POINTER(Memory)),
    ]


class Net(Structure):
    """bm_net_info_t."""

    _fields_ = [
        ("name", c_char_p), ("is_dynamic", c_bool),
        ("input_num", c_int), ("input_names", POINTER(c_char_p)), ("input_dtypes", POINTER(c_int)),
        ("input_scales", c_void_p),
        ("output_num", c_int), ("output_names", POINTER(c_char_p)), ("output_dtypes", POINTER(c_int)),
        ("output_scales", c_void_p), ("stage_num", c_int), ("stages", POINTER(Stage)),
        ("max_input_bytes", POINTER(c_size_t)), ("max_output_bytes", POINTER(c_size_t)),
        ("input_zero_point", c_void_p), ("output_zero_point", c_void_p),
        ("input_loc_devices", c_void_p), ("output_loc_devices", c_void_p),
        ("core_num", c_int), ("addr_mode", c_int),
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Redirects what the C libraries print from stdout to stderr: stdout is for the user."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


class Library:
    """The C functions in use. A call that returns an error status or false raises RuntimeError."""

    def __init__(self, folder: Path) -> None:
        with quiet():
            lib = ctypes.CDLL(str(folder / "libbmlib.so.0"), ctypes.RTLD_GLOBAL)
            runtime = ctypes.CDLL(str(folder / "libbmrt.so"))
        handle = c_void_p
        self._devices: dict[int, c_void_p] = {}
        self._functions = {
            "bm_dev_request": _typed(lib.bm_dev_request, c_int, POINTER(handle), c_int),
            "bm_malloc_device_byte": _typed(lib.bm_malloc_device_byte, c_int, handle, POINTER(Memory), c_uint),
            "bm_free_device": _typed(lib.bm_free_device, None, handle, Memory),
            "bm_memcpy_s2d": _typed(lib.bm_memcpy_s2d, c_int, handle, Memory, c_void_p),
            "bm_memcpy_d2s": _typed(lib.bm_memcpy_d2s, c_int, handle, c_void_p, Memory),
            "bm_memcpy_d2d_byte": _typed(
                lib.bm_memcpy_d2d_byte, c_int, handle, Memory, c_size_t, Memory, c_size_t, c_size_t
            ),
            "bm_thread_sync": _typed(lib.bm_thread_sync, c_int, handle),
            "bmrt_create": _typed(runtime.bmrt_create, c_void_p, handle),
            "bmrt_destroy": _typed(runtime.bmrt_destroy, None, c_void_p),
            "bmrt_load_bmodel": _typed(runtime.bmrt_load_bmodel, c_bool, c_void_p, c_char_p),
            "bmrt_load_bmodel_data": _typed(runtime.bmrt_load_bmodel_data, c_bool, c_void_p, c_char_p, c_size_t),
            "bmrt_get_network_number": _typed(runtime.bmrt_get_network_number, c_int, c_void_p),
            "bmrt_get_network_names": _typed(
                runtime.bmrt_get_network_names, None, c_void_p, POINTER(POINTER(c_char_p))
            ),
            "bmrt_get_network_info": _typed(runtime.bmrt_get_network_info, POINTER(Net), c_void_p, c_char_p),
            "bmrt_launch_tensor_ex": _typed(
                runtime.bmrt_launch_tensor_ex, c_bool, c_void_p, c_char_p, POINTER(DeviceTensor), c_int,
                POINTER(DeviceTensor), c_int, c_bool, c_bool,
            ),
        }

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function by its C name."""
        function = self._functions[name]
        with quiet():
            result = function(*arguments)
        failed = result != 0 if function.restype is c_int and "number" not in name else result in (False, None)
        if failed and function.restype is not None:
            raise RuntimeError(f"{name} failed: {result}")
        return result

    def device(self, number: int) -> c_void_p:
        """The handle of a device. The process has one per device number."""
        if number not in self._devices:
            handle = c_void_p()
            self("bm_dev_request", byref(handle), number)
            self._devices[number] = handle
        return self._devices[number]


@functools.cache
def library() -> Library:
    """The C model's libraries. Raises Unsupported if they are not installed."""
    return Library(_folder())


def _folder() -> Path:
    """A folder that contains only links to the libraries to load."""
    environment = Path(os.environ.get(_ENVIRONMENT, ".venv-tpu")).absolute()
    source = environment / "lib/python3.10/site-packages/tpu_mlir/lib"
    if not (source / "libbmrt.so").exists():
        raise Unsupported(
            f"The emulator needs tpu_mlir, and {environment} does not have it: deploy/models/compile.sh installs it, "
            f"and {_ENVIRONMENT} names another place."
        )
    folder = Path(tempfile.mkdtemp(prefix="sailq-cmodel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for link, target in _LINKS.items():
        (folder / link).symlink_to(source / target)
    return folder


def _typed(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function
