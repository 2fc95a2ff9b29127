"""SAIL's exceptions as Python sees them: pybind11 registers each by itself, so they have no base but Exception.

Its `SailRuntimeError` ("no enough device memory", "bmlib api fail") is not registered and arrives as RuntimeError, and
the lookup of a net that there is not as IndexError.
"""

from __future__ import annotations


class MemoryError(Exception):
    """Of a copy between host and device."""


class NotSupport(Exception):
    """SAIL was built without it."""


class DataTypeError(Exception):
    """Two tensors of different dtypes."""


class SailDeviceError(Exception):
    """The device cannot be opened or asked."""


class SailTensorError(Exception):
    """A tensor cannot be made, written or read so."""


class SailEngineError(Exception):
    """A net cannot be loaded or run."""


class SailBMImageError(Exception):
    """Of images, which sailq leaves to others."""


class SailDecoderError(Exception):
    """Of video."""


class SailEncoderError(Exception):
    """Of video."""


class SailUnknownError(Exception):
    """A status that SAIL does not know."""
