"""Reads an untrusted FlatBuffer. Any bytes give a result or `Corrupt`, in bounded time.

The `flatbuffers` package trusts its input: it raises various errors for an offset out of range, and follows a vector
of a million references to one table a million times. Here fields are named by their id in the schema.
Format: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any


class Corrupt(ValueError):
    """An offset, a length or a text is not valid in a FlatBuffer."""


class Buffer:
    """The bytes of one FlatBuffer, with bounds checks. `data` begins with its first byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # A reader that reads each vector once reads at most as many bytes as the buffer has.
        self._unread = len(data)

    def root(self) -> Table:
        return Table(self, self.target(0))

    def unpack(self, layout: str, at: int) -> tuple[Any, ...]:
        """Values of the struct module's `layout`, little endian."""
        if not 0 <= at <= len(self._data) - struct.calcsize("<" + layout):
            raise Corrupt
        return struct.unpack_from("<" + layout, self._data, at)

    def target(self, at: int) -> int:
        """The offset that the reference at `at` points to."""
        return at + int(self.unpack("I", at)[0])

    def vector(self, at: int, width: int) -> tuple[int, int]:
        """(offset of the first element, number of elements) of the vector that the reference at `at` points to."""
        start = self.target(at)
        (count,) = self.unpack("I", start)
        self._unread -= 4 + count * width
        if self._unread < 0 or start + 4 + count * width > len(self._data):
            raise Corrupt
        return start + 4, count

    def text(self, at: int) -> str:
        start, count = self.vector(at, 1)
        try:
            text = self._data[start : start + count].decode()
        except UnicodeDecodeError:
            raise Corrupt from None
        if not text.isprintable():  # it is printed to terminals
            raise Corrupt
        return text


class Table:
    """One table. An absent field is 0, None or empty, as in FlatBuffers."""

    def __init__(self, buffer: Buffer, at: int) -> None:
        self._buffer, self._at = buffer, at
        self._fields = at - buffer.unpack("i", at)[0]
        (self._size,) = buffer.unpack("H", self._fields)

    def number(self, field: int, layout: str) -> int:
        """An integer. `layout`: one format letter of the struct module."""
        at = self._place(field)
        return int(self._buffer.unpack(layout, at)[0]) if at else 0

    def numbers(self, field: int, layout: str) -> tuple[int, ...]:
        """A vector of integers."""
        at = self._place(field)
        if not at:
            return ()
        start, count = self._buffer.vector(at, struct.calcsize("<" + layout))
        return self._buffer.unpack(f"{count}{layout}", start)

    def record(self, field: int, layout: str) -> tuple[int, ...] | None:
        """A struct, which is stored in the table itself."""
        at = self._place(field)
        return self._buffer.unpack(layout, at) if at else None

    def text(self, field: int) -> str:
        at = self._place(field)
        return self._buffer.text(at) if at else ""

    def table(self, field: int) -> Table | None:
        at = self._place(field)
        return Table(self._buffer, self._buffer.target(at)) if at else None

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables. May be read only once."""
        at = self._place(field)
        if at:
            start, count = self._buffer.vector(at, 4)
            for place in range(start, start + 4 * count, 4):
                yield Table(self._buffer, self._buffer.target(place))

    def _place(self, field: int) -> int:
        """The offset of the field's value, or 0 if it is absent. No value is at 0: the root's reference is there."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        (offset,) = self._buffer.unpack("H", self._fields + entry)
        return self._at + offset if offset else 0
