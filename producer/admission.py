"""Backpressure: whether the server has room for one more job, asked before anything is uploaded."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import redis
from rq.queue import Queue
from rq.registry import DeferredJobRegistry

from ..shared import keys
from ..shared.errors import QueueFull
from ..shared.settings import Settings

_LONGEST_PAUSE = 1.0

# The blobs that may be on the server, by the end of their lives, with their sizes: what has ended is taken off first, a
# thousand at a time, so that no submission pays for all of a busy day's. When nobody has submitted for two such lives,
# the count is forgotten.
_ADMIT = """
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], 0, ARGV[1], 'LIMIT', 0, 1000)) do
  redis.call('DECRBY', KEYS[5], redis.call('HGET', KEYS[4], digest) or 0)
  redis.call('HDEL', KEYS[4], digest)
  redis.call('ZREM', KEYS[3], digest)
end
local waiting = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if waiting >= tonumber(ARGV[3]) then return {'jobs', waiting} end
local held, new = tonumber(redis.call('GET', KEYS[5]) or 0), 0
for i = 5, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[4], ARGV[i]) == 0 then new = new + ARGV[i + 1] end
end
if new > 0 and held + new > tonumber(ARGV[4]) then return {'bytes', held} end
for i = 5, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1]) == 1 then redis.call('INCRBY', KEYS[5], ARGV[i + 1]) end
  redis.call('ZADD', KEYS[3], ARGV[2], ARGV[i])
end
for i = 3, 5 do redis.call('EXPIREAT', KEYS[i], math.ceil(2 * ARGV[2] - ARGV[1])) end
return {'room', 0}
"""


class Admission:
    """Lets jobs in while there is room: `max_queued` jobs waiting for a model, `max_blob_bytes` of frames in all."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._settings = settings
        self._admit = connection.register_script(_ADMIT)

    def admit(self, model: str, blobs: Mapping[str, bytes], now: float, wait: float = 0.0) -> None:
        """Returns when there is room for a job with these blobs, which are counted from then on.

        Args:
            now: the server's time, seconds since the epoch.
            wait: seconds to wait for room.

        Raises QueueFull.
        """
        until, pause = time.monotonic() + wait, 0.05
        while (refusal := self._ask(model, blobs, now)) is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise refusal
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # thousands may wait for the same place
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _ask(self, model: str, blobs: Mapping[str, bytes], now: float) -> QueueFull | None:
        settings, queue = self._settings, keys.queue(model)
        sizes = [field for digest, blob in blobs.items() for field in (keys.blob_name(digest), len(blob))]
        what, count = self._admit(
            keys=[Queue.redis_queue_namespace_prefix + queue, DeferredJobRegistry.key_template.format(queue),
                  keys.BLOBS, keys.BLOB_SIZES, keys.BLOB_BYTES],
            args=[now, now + settings.blob_ttl, settings.max_queued, settings.max_blob_bytes, *sizes],
        )
        if what == b"jobs":
            return QueueFull(f"{count} jobs wait for {model} already; at most {settings.max_queued} may.")
        if what == b"bytes":
            return QueueFull(
                f"The clips that wait on the server take {count >> 20} MB already; at most "
                f"{settings.max_blob_bytes >> 20} MB may."
            )
        return None
