"""SAIL's exceptions in Python. pybind11 registers each one separately, so they have no common base but Exception.

Its `SailRuntimeError` ("no enough device memory", "bmlib api fail") is not registered and arrives as RuntimeError. An
unknown net raises IndexError.
"""

from __future__ import annotations


class MemoryError(Exception):
    """A copy between host and device failed."""


class NotSupport(Exception):
    """SAIL was built without this feature."""


class DataTypeError(Exception):
    """Two tensors have different dtypes."""


class SailDeviceError(Exception):
    """The device cannot be opened or queried."""


class SailTensorError(Exception):
    """A tensor cannot be created, written or read with these arguments."""


class SailEngineError(Exception):
    """A net cannot be loaded or run."""


class SailBMImageError(Exception):
    """An image operation failed. sailq uses none."""


class SailDecoderError(Exception):
    """Decoding a video failed. sailq decodes none with SAIL."""


class SailEncoderError(Exception):
    """Encoding a video failed. sailq encodes none."""


class SailUnknownError(Exception):
    """SAIL met an unknown status."""
