"""The part of `sophon.sail` that `runners.sail` uses, on the C model of the BM1684X.

Names, arguments and behaviour are SAIL's own (release 3.10, `src/bind.cpp`), in the build that runs on a box
(`IS_SOC_MODE`): see `cache` for its memory. Code that works there works on a PCIe card too. Where SAIL would kill the
process or corrupt memory, this raises ValueError.
"""

from __future__ import annotations

from .engine import EngineLLM
from .errors import (
    DataTypeError,
    MemoryError,
    NotSupport,
    SailBMImageError,
    SailDecoderError,
    SailDeviceError,
    SailEncoderError,
    SailEngineError,
    SailTensorError,
    SailUnknownError,
)
from .tensor import Dtype, Handle, Tensor

__all__ = [
    "DEVICE", "DataTypeError", "Dtype", "EngineLLM", "Handle", "MemoryError", "NotSupport", "SailBMImageError",
    "SailDecoderError", "SailDeviceError", "SailEncoderError", "SailEngineError", "SailTensorError",
    "SailUnknownError", "Tensor", "get_available_tpu_num",
]

DEVICE = "BM1684X emulator"


def get_available_tpu_num() -> int:
    """Always 1: the C model."""
    return 1
