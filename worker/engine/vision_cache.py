"""Vision tokens that were made before: a second question about a clip, or a retry, does not encode it again."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from sailq.shared.jobs import FramesPart

Embeds = npt.NDArray[np.float32]
Key = tuple[str, int, int, int]


def key_of(part: FramesPart) -> Key:
    """A blob's digest is its frames' content hash, and the frames have their size: (digest, frames, height, width)."""
    return part.blob, part.frames, part.height, part.width


class VisionCache:
    """The embeddings float32 [V, H] used last, in at most `limit` bytes. May be used from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._entries: OrderedDict[Key, Embeds] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Embeds | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Key, embeds: Embeds) -> None:
        """Keep it, in the place of those that were used longest ago; what exceeds the limit by itself is not kept."""
        with self._lock:
            if key in self._entries or embeds.nbytes > self._limit:
                return
            self._entries[key] = embeds
            self._bytes += embeds.nbytes
            while self._bytes > self._limit:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes
