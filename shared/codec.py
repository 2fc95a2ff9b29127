"""Versioned msgpack: `encode` and `decode` for records, `pack` and `unpack` for plain values with arrays.

An encoded record is the msgpack map `{"v": VERSION, "type": name, "body": fields}`. A numpy array is
extension type 1 around `[dtype, shape, bytes]`, little-endian, C order. Nothing is ever unpickled, and the
limits (see `msgpack_limits`, too) are checked before anything is built. `pack` refuses what `unpack` refuses.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from .errors import CodecError
from .jobs import Job, ModelCard, Record, Result, Turn, media_parts, parse
from .msgpack_limits import ARRAY_VALUES, MAX_VALUES, check_bounds

VERSION = 2
"""Version 2 adds the times of a video's frames, and is written only for records that have them. Both are read."""
MAX_RECORD_BYTES = 1024 * 1024
"""The limit of a job. A result and a turn repeat parts of the job, and may have twice the bytes and values."""

_ARRAY = 1
_DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1"}
_TYPES: dict[str, type[Record]] = {"job": Job, "result": Result, "turn": Turn, "model": ModelCard}
_NAMES = {kind: name for name, kind in _TYPES.items()}

R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """Encodes a record. Raises CodecError if it is larger than `MAX_RECORD_BYTES` allows."""
    kind = type(record)
    return pack({"v": _version(record), "type": _NAMES[kind], "body": record.model_dump()}, *_limits(kind))


def decode(kind: type[R], data: bytes) -> R:
    """Decodes a record of type `kind`. Raises only CodecError or BadRequest."""
    value = unpack(data, *_limits(kind))
    name = _NAMES[kind]
    if not isinstance(value, dict) or set(value) != {"v", "type", "body"}:
        raise CodecError(f"These bytes are not a sailq {name}.")
    if type(value["v"]) is not int or not 1 <= value["v"] <= VERSION:  # == would compare an array element by element
        raise CodecError(f"This {name} has protocol version {reprlib.repr(value['v'])}; sailq reads 1 to {VERSION}.")
    if not isinstance(value["type"], str) or value["type"] != name:
        raise CodecError(f"Expected a {name}, got {reprlib.repr(value['type'])}.")
    return parse(kind, value["body"])


def _version(record: Record) -> int:
    """The oldest protocol version that can express `record`, so that older versions can read it."""
    parts = media_parts(record.messages) if isinstance(record, (Job, Turn)) else []
    return 2 if any(part.times for part in parts) else 1


def _limits(kind: type[Record]) -> tuple[int, int]:
    """The most (bytes, values) of a record of `kind`."""
    share = 1 if kind is Job else 2
    return share * MAX_RECORD_BYTES, share * MAX_VALUES


def pack(value: Any, limit: int, max_values: int = MAX_VALUES) -> bytes:
    """Packs maps, lists, scalars and numpy arrays as msgpack. Raises CodecError for more than `limit` bytes."""
    try:
        data = msgpack.packb(value, default=_pack_array, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"This value cannot be sent: {error}.") from None
    if len(data) > limit:
        raise CodecError(f"This value takes {len(data)} bytes; the limit is {limit}.")
    check_bounds(data, max_values)
    return bytes(data)


def unpack(data: bytes, limit: int, max_values: int = MAX_VALUES) -> Any:
    """Unpacks a value. Raises CodecError unless `data` is exactly one value of at most `limit` bytes."""
    if len(data) > limit:
        raise CodecError(f"This value takes {len(data)} bytes; the limit is {limit}.")
    check_bounds(data, max_values)
    try:
        return msgpack.unpackb(data, ext_hook=_unpack_array, raw=False, strict_map_key=True)
    except CodecError:
        raise
    except Exception as error:  # msgpack raises its own types, ValueError and UnicodeError
        raise CodecError(f"These bytes are not valid msgpack ({type(error).__name__}).") from None


def _pack_array(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"the protocol has no type {type(value).__name__}")
    code = value.dtype.newbyteorder("<").str[1:]
    if code not in _DTYPES:
        raise TypeError(f"the protocol has no arrays of {value.dtype}")
    little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return msgpack.ExtType(_ARRAY, msgpack.packb([code, list(value.shape), little.tobytes()], use_bin_type=True))


def _unpack_array(code: int, data: bytes) -> npt.NDArray[Any]:
    check_bounds(data, ARRAY_VALUES)
    fields = msgpack.unpackb(data, raw=False)
    if not (isinstance(fields, list) and len(fields) == 3):
        raise CodecError("A packed array must be [dtype, shape, bytes].")
    dtype, shape, raw = fields
    if dtype not in _DTYPES or not isinstance(raw, bytes) or not isinstance(shape, list):
        raise CodecError("A packed array must be [dtype, shape, bytes].")
    if len(shape) > 8 or not all(type(size) is int and size >= 0 for size in shape):
        raise CodecError("A packed array has an invalid shape.")
    kind = np.dtype("<" + dtype)
    if math.prod(shape) * kind.itemsize != len(raw):
        raise CodecError("The bytes of a packed array do not have the size of its shape.")
    return np.frombuffer(raw, dtype=kind).reshape(shape)
