"""Reads keys that anybody may have written. Refuses a value that is too large before it reaches this process."""

from __future__ import annotations

from typing import Any

from redis import Redis

# MEMORY USAGE samples every element: an estimate from five of them could be deceived.
_READ = """
local size = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
if size and size > tonumber(ARGV[1]) then return {size} end
local command = {}
for i = 2, #ARGV do command[i - 1] = ARGV[i] end
return {0, redis.call(command[1], KEYS[1], unpack(command, 2))}
"""


class TooLarge(Exception):
    """The value of a key takes more memory than the limit."""


def bounded_read(connection: Redis, limit: int, command: str, key: str, *arguments: object) -> Any:
    """The server's reply to a command about `key`. Raises TooLarge if the key takes more than `limit` bytes of the
    server's memory."""
    size, *reply = connection.register_script(_READ)(keys=[key], args=[limit, command, *arguments])
    if size:
        raise TooLarge(f"{key} takes {size} bytes; the limit is {limit}")
    return reply[0] if reply else None
