"""New inputs out of old ones: by bytes, and by what they hold."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import msgpack

MAX_BYTES = 64 * 1024

_BYTES = bytes([0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC7, 0xD8, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xE0, 0xFF])
_RUNS = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xdd\x7f\xff\xff\xff", b"\x90" * 300, b"[" * 300, b"\xff\xda",
         b"\xff\xc2", b"\xff\x01", b"\\ud800", b"1e999", b"9" * 5000, b"NaN", b"\r\n", b"\0")
_DEEP = 80


def _nested(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 28, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.5, 1e308, math.nan, math.inf,
    -math.inf, "", "a", "x" * 300, "a\n\x1b[2J", "../..", "\N{GRINNING FACE}" * 50, "os.system", "0" * 64, "NaN",
    [], {}, [None] * 300, {"a": {"b": []}}, {str(key): key for key in range(300)}, _nested(_DEEP),
)
_MSGPACK_VALUES = (
    *_VALUES, b"", b"\xff" * 300, {b"a": 1}, {1: 1}, msgpack.ExtType(5, b"x"), msgpack.Timestamp(0),
    *(msgpack.ExtType(1, msgpack.packb(value)) for value in (
        ["u1", [3], b"abc"], ["f8", [2], bytes(16)], ["u1", [2**62, 4], b""], ["O", [1], bytes(8)], [[], [], b""], 7,
        msgpack.ExtType(1, msgpack.packb(["u1", [0], b""])),
    )),
)
_JSON_VALUES = (*_VALUES, 10**400, -(10**400), "\ud800", "data:image/png;base64,AAAA", "https://example.org/a.mp4")


def mutated(data: bytes, others: Sequence[bytes], form: str, chance: random.Random) -> bytes:
    """Another input, of at most `MAX_BYTES`. `others`: what to take pieces of. `form`: "msgpack" or "json"."""
    values = _JSON_VALUES if form == "json" else _MSGPACK_VALUES
    if chance.random() < 0.6:
        try:
            tree = json.loads(data) if form == "json" else msgpack.unpackb(data, strict_map_key=False)
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                tree = _with_another_value(tree, values, chance)
            return (json.dumps(tree).encode() if form == "json" else msgpack.packb(tree))[:MAX_BYTES]
        except Exception:
            pass  # it is no longer a valid tree
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        data = _with_other_bytes(data, others, chance)
    return data[:MAX_BYTES]


def _with_other_bytes(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    start = chance.randint(0, len(data))
    end = min(len(data), start + chance.choice((1, 1, 2, 4, 16, 64)))
    kind = chance.randrange(6)
    if kind == 0:
        piece = bytes([chance.choice(_BYTES)])
    elif kind == 1:
        piece = bytes([data[start] ^ 1 << chance.randrange(8)]) + data[start + 1 : end] if start < end else b""
    elif kind == 2:
        piece = b""
    elif kind == 3:
        piece = data[start:end] * chance.choice((2, 3, 50))
    elif kind == 4:
        piece = chance.choice(_RUNS)
    else:
        other = chance.choice(others)
        at = chance.randint(0, len(other))
        piece = other[at : at + chance.choice((4, 32, 4096))]
    return data[:start] + piece + data[end if chance.random() < 0.7 else start :]


def _with_another_value(tree: Any, values: Sequence[Any], chance: random.Random) -> Any:
    """`tree` with one value, at any depth, replaced, removed, doubled or moved."""
    if isinstance(tree, bytes) and tree and chance.random() < 0.7:
        return _with_other_bytes(tree, [tree], chance)
    if not isinstance(tree, (dict, list)) or not tree or chance.random() < 0.15:
        return chance.choice(values)
    key = chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
    changed = tree.copy()
    kind = chance.randrange(10)
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[chance.choice(("a", "type", "v", "frames", "data", "x" * 300, "\n"))] = chance.choice(values)
    elif kind == 1:
        changed.append(tree[key])
    elif kind == 2:
        changed[key] = tree
    else:
        changed[key] = _with_another_value(tree[key], values, chance)
    return changed
