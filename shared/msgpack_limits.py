"""Checks the size of a msgpack message from its headers, before anything is built.

An empty list takes 1 byte in a message and 64 in memory. msgpack allocates a list by its stated length before it reads
the items, and limits the length of each list but not of all lists together.
"""

from __future__ import annotations

from .errors import CodecError

MAX_DEPTH = 64
MAX_VALUES = 64 * 1024
"""Keys and values of one message, at all depths: at most 5 MB in memory, and a tenth of a second to build."""
MAX_TEXT_BYTES = 2 * 1024 * 1024
"""UTF-8 of a message's texts together; Python may need four times as much."""

ARRAY_VALUES = 12
"""The values that each packed array counts as: its list, dtype, shape of at most 8 sizes, and bytes."""

_ARRAY = b"\x01"
_Head = tuple[str, int, int]
"""What a first byte means: (kind, number of bytes of the size that follow, or 0, the size if none follow)."""


def _heads() -> list[_Head]:
    """https://github.com/msgpack/msgpack/blob/master/spec.md, "Formats", in the order of their first bytes."""
    return [
        *[("scalar", 0, 0)] * 0x80,
        *[("map", 0, size) for size in range(16)],
        *[("list", 0, size) for size in range(16)],
        *[("text", 0, size) for size in range(32)],
        *[("scalar", 0, 0)] * 4,
        *[("bytes", width, 0) for width in (1, 2, 4)],
        *[("extension", width, 0) for width in (1, 2, 4)],
        *[("scalar", 0, size) for size in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)],
        *[("extension", 0, size) for size in (1, 2, 4, 8, 16)],
        *[("text", width, 0) for width in (1, 2, 4)],
        *[("list", width, 0) for width in (2, 4)],
        *[("map", width, 0) for width in (2, 4)],
        *[("scalar", 0, 0)] * 0x20,
    ]


_HEADS = _heads()


def check_bounds(data: bytes, max_values: int) -> None:
    """Raises CodecError for a message of more than `max_values` values, `MAX_DEPTH` levels or `MAX_TEXT_BYTES`, for one
    that ends too early, and for extensions other than the codec's array."""
    at, values, text = 0, 1, 0
    missing = [1]  # values missing in each open container
    while missing:
        if values > max_values:
            raise CodecError(f"This value contains more than {max_values} values.")
        if not missing[-1]:
            missing.pop()
            continue
        missing[-1] -= 1
        if at >= len(data):
            raise CodecError("These bytes are not valid msgpack: they end too early.")
        kind, width, size = _HEADS[data[at]]
        at += 1 + width
        if width:
            size = int.from_bytes(data[at - width : at], "big")
        if kind == "list" or kind == "map":
            size = size if kind == "list" else 2 * size
            values += size
            if len(missing) > MAX_DEPTH:
                raise CodecError(f"This value is nested more than {MAX_DEPTH} levels deep.")
            missing.append(size)
            continue
        if kind == "text":
            text += size
            if text > MAX_TEXT_BYTES:
                raise CodecError(f"This value contains more than {MAX_TEXT_BYTES} bytes of text.")
        elif kind == "extension":
            if data[at : at + 1] != _ARRAY:
                raise CodecError(f"Unknown msgpack extension type 0x{data[at : at + 1].hex()}.")
            values += ARRAY_VALUES
            at += 1
        at += size
