"""Caches vision tokens, so that a second question about a clip, or a retry, does not encode it again."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from sailq.shared.jobs import FramesPart

Embeds = npt.NDArray[np.float32]
Key = tuple[str, int, int, int]


def key_of(part: FramesPart) -> Key:
    """The cache key of a part: (digest, frames, height, width). The digest is a hash of the frames' bytes."""
    return part.blob, part.frames, part.height, part.width


class VisionCache:
    """An LRU cache of embeddings, float32 [V, 1 + D, H], of at most `limit` bytes. May be used from any thread."""

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
        """Keep embeddings and evict those used longest ago. An entry larger than the limit is not kept."""
        with self._lock:
            if key in self._entries or embeds.nbytes > self._limit:
                return
            self._entries[key] = embeds
            self._bytes += embeds.nbytes
            while self._bytes > self._limit:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes
