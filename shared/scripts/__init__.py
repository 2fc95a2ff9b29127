"""The transitions of a job, one Lua script each: whatever dies between two commands leaves no half state.

Each file says at its head what its KEYS and ARGV are and what it returns. common.lua stands before every one of them.
All times are the server's, in seconds since the epoch. Redis Cluster cannot run them: they name keys that they find.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from redis import Redis
from redis.commands.core import Script


def script(connection: Redis, name: str) -> Script:
    """The script in `name`.lua; redis-py loads it again where a server has lost it."""
    return connection.register_script(text(name))


@cache
def text(name: str) -> str:
    """What is sent to the server."""
    return "\n".join(files(__package__).joinpath(f"{part}.lua").read_text() for part in ("common", name))
