"""Reads of what anybody may have written, which refuse what is larger than it may be before it is in this process."""

from __future__ import annotations

from typing import Any

from redis import Redis

# MEMORY USAGE looks at every element: an estimate from five of them is what somebody means to deceive.
_READ = """
local size = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
if size and size > tonumber(ARGV[1]) then return {size} end
local command = {}
for i = 2, #ARGV do command[i - 1] = ARGV[i] end
return {0, redis.call(command[1], KEYS[1], unpack(command, 2))}
"""


class TooLarge(Exception):
    """What a key holds takes more memory than it may."""


def bounded_read(connection: Redis, limit: int, command: str, key: str, *arguments: object) -> Any:
    """The reply to a command about `key`, as the server gives it; raises TooLarge where the key takes more than `limit`
    bytes of the server's memory."""
    size, *reply = connection.register_script(_READ)(keys=[key], args=[limit, command, *arguments])
    if size:
        raise TooLarge(f"{key} takes {size} bytes; at most {limit} are read")
    return reply[0] if reply else None
