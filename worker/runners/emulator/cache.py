"""Emulates a box's memory as its cores see it: through a cache that the chip does not see.

On a box the nets' own tensors are mapped into host memory with the cache on ("NPU directly accesses DDR without passing
cache but cache is passed when an application accesses it", libsophon's guide). What the host writes stays in dirty
lines until they are flushed or evicted. A real cache may evict a line at any time. This one evicts at the worst time: a
dirty line is evicted only when the chip has just written to the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

LINE = 64
"""Bytes in a cache line of a Cortex-A53."""


class Cache:
    """A write-back cache of a device's memory. Lines are found by physical address, so all mappings of a place share
    them.

    Args:
        load: reads bytes from the device's memory.
        store: writes bytes to the device's memory.
    """

    def __init__(self, load: Callable[[int, int], bytes], store: Callable[[int, bytes], None]) -> None:
        self._load, self._store = load, store
        self._lines: dict[int, bytes] = {}
        self._dirty: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        """Read as the host does. Cached lines are used even if the chip wrote there since; others are fetched."""
        lines = _lines(address, size)
        self._fetch(lines)
        held = b"".join(map(self._lines.__getitem__, lines))
        start = address - lines.start * LINE
        return held[start : start + size]

    def write(self, address: int, data: bytes) -> None:
        """Write as the host does: to cache lines only. A line that is only partly written is fetched first."""
        lines = _lines(address, len(data))
        self._fetch({lines[0], lines[-1]})
        before = address - lines.start * LINE
        after = len(lines) * LINE - before - len(data)
        held = self._lines[lines[0]][:before] + data + self._lines[lines[-1]][LINE - after :]
        self._lines.update((line, held[i * LINE : (i + 1) * LINE]) for i, line in enumerate(lines))
        self._dirty.update(lines)

    def flush(self, address: int, size: int) -> None:
        """Write dirty lines back; the host keeps them as clean ones."""
        dirty = self._dirty.intersection(_lines(address, size))
        for run in _runs(dirty):
            self._store(run.start * LINE, b"".join(map(self._lines.__getitem__, run)))
        self._dirty -= dirty

    def invalidate(self, address: int, size: int) -> None:
        """Drop lines. Data that was not flushed is lost."""
        lines = _lines(address, size)
        for line in lines:
            self._lines.pop(line, None)
        self._dirty.difference_update(lines)

    def chip_wrote(self, address: int, size: int) -> None:
        """Evict the dirty lines, which overwrites what the chip wrote."""
        if self._dirty:
            self.flush(address, size)

    def _fetch(self, lines: Iterable[int]) -> None:
        for run in _runs(line for line in lines if line not in self._lines):
            data = self._load(run.start * LINE, len(run) * LINE)
            self._lines.update((line, data[i * LINE : (i + 1) * LINE]) for i, line in enumerate(run))


def _lines(address: int, size: int) -> range:
    return range(address // LINE, -(-(address + size) // LINE))


def _runs(lines: Iterable[int]) -> Iterator[range]:
    """Groups of consecutive lines."""
    ordered = sorted(lines)
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or ordered[end] != ordered[end - 1] + 1:
            yield range(ordered[start], ordered[end - 1] + 1)
            start = end
