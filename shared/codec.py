"""Versioned msgpack: `encode` and `decode` for records, `pack` and `unpack` for plain values with arrays.

An encoded record is the msgpack map `{"v": VERSION, "type": name, "body": fields}`. A numpy array is
extension type 1 around `[dtype, shape, bytes]`, little-endian, C order. Nothing is ever unpickled, and the
limits are checked before anything of that size is built.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from .errors import CodecError
from .jobs import Job, ModelCard, Record, Result, Turn, parse

VERSION = 1
MAX_RECORD_BYTES = 1024 * 1024
MAX_DEPTH = 64

_ARRAY = 1
_DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1"}
_TYPES: dict[str, type[Record]] = {"job": Job, "result": Result, "turn": Turn, "model": ModelCard}
_NAMES = {kind: name for name, kind in _TYPES.items()}

R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """Raises CodecError when the record is larger than `MAX_RECORD_BYTES`."""
    name = _NAMES[type(record)]
    return pack({"v": VERSION, "type": name, "body": record.model_dump()}, MAX_RECORD_BYTES)


def decode(kind: type[R], data: bytes) -> R:
    """The record of type `kind` in `data`; raises CodecError or BadRequest, never anything else."""
    value = unpack(data, MAX_RECORD_BYTES)
    name = _NAMES[kind]
    if not isinstance(value, dict) or set(value) != {"v", "type", "body"}:
        raise CodecError(f"These bytes are no {name} of sailq.")
    if value["v"] != VERSION:
        raise CodecError(f"This {name} has protocol version {value['v']!r}; this side speaks {VERSION}.")
    if value["type"] != name:
        raise CodecError(f"Expected a {name}, got {value['type']!r}.")
    return parse(kind, value["body"])


def pack(value: Any, limit: int) -> bytes:
    """msgpack bytes of maps, lists, scalars and numpy arrays; raises CodecError past `limit` bytes."""
    try:
        data = msgpack.packb(value, default=_pack_array, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"This value cannot travel: {error}.") from None
    if len(data) > limit:
        raise CodecError(f"This value takes {len(data)} bytes; at most {limit} may travel.")
    return bytes(data)


def unpack(data: bytes, limit: int) -> Any:
    """The value in `data`; raises CodecError for anything that is not exactly one value within `limit` bytes."""
    if len(data) > limit:
        raise CodecError(f"This value takes {len(data)} bytes; at most {limit} may travel.")
    try:
        # No container or string in `data` can be longer than `data`: a forged length allocates nothing.
        value = msgpack.unpackb(
            data, ext_hook=_unpack_array, raw=False, strict_map_key=True,
            max_str_len=len(data), max_bin_len=len(data), max_ext_len=len(data),
            max_array_len=len(data), max_map_len=len(data),
        )
    except CodecError:
        raise
    except Exception as error:  # msgpack raises its own types and ValueError, UnicodeError, RecursionError
        raise CodecError(f"These bytes are not valid msgpack ({type(error).__name__}).") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise CodecError(f"This value is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, left - 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, left - 1)


def _pack_array(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no place in the protocol for a {type(value).__name__}")
    code = value.dtype.newbyteorder("<").str[1:]
    if code not in _DTYPES:
        raise TypeError(f"no place in the protocol for an array of {value.dtype}")
    little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return msgpack.ExtType(_ARRAY, msgpack.packb([code, list(value.shape), little.tobytes()], use_bin_type=True))


def _unpack_array(code: int, data: bytes) -> npt.NDArray[Any]:
    if code != _ARRAY:
        raise CodecError(f"Unknown msgpack extension type {code}.")
    fields = msgpack.unpackb(data, raw=False, max_bin_len=len(data))
    if not (isinstance(fields, list) and len(fields) == 3):
        raise CodecError("A packed array is not [dtype, shape, bytes].")
    dtype, shape, raw = fields
    if dtype not in _DTYPES or not isinstance(raw, bytes) or not isinstance(shape, list):
        raise CodecError("A packed array is not [dtype, shape, bytes].")
    if len(shape) > 8 or not all(type(size) is int and size >= 0 for size in shape):
        raise CodecError("A packed array has an impossible shape.")
    kind = np.dtype("<" + dtype)
    if math.prod(shape) * kind.itemsize != len(raw):
        raise CodecError("A packed array's bytes do not fill its shape.")
    return np.frombuffer(raw, dtype=kind).reshape(shape)
