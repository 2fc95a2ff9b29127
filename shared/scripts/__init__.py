"""The state changes of a job, one Lua script each. The server runs a script atomically, so a crash leaves no half of
it.

The head of each file lists its KEYS, its ARGV and what it returns. common.lua, clips.lua and endings.lua are put before
each script.
Times are the server's, or the caller's estimate of them, in seconds since the epoch. Redis Cluster cannot run these
scripts: they use keys whose names they read from other keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.commands.core import Script
from redis.exceptions import NoScriptError

PRODUCER = ("submit", "cancel", "hold", "clear", "follow", "admit")
"""The scripts that a producer calls. Only a gateway calls `admit`."""
WORKER = ("claim", "begin", "renew", "finish", "release", "recover", "hold", "say")
"""The scripts that a worker calls. It also calls `write`, which has no commands of its own."""
_SHARED = ("common", "clips", "endings")
REPLICATED_SECONDS = 1.0
"""Seconds that replicas have to confirm a script's writes."""


def script(connection: Redis, name: str) -> Script:
    """The script in `name`.lua. redis-py loads it again if the server has lost it."""
    return connection.register_script(text(name))


@cache
def text(name: str) -> str:
    """The full text of a script, as sent to the server."""
    parts = (files(__package__).joinpath(f"{part}.lua").read_text() for part in (*_SHARED, name))
    # A full server refuses the scripts that add jobs or clips. The others run, so that jobs can end.
    flags = "" if name in {"submit", "hold", "follow"} else " flags=allow-oom"
    return "\n".join([f"#!lua{flags}", *parts])


def write(pipeline: Pipeline, connection: Redis) -> None:
    """Runs a pipeline's commands in one script. A full server refuses them otherwise, and its jobs need workers."""
    arguments = [word for command, _ in pipeline.command_stack for word in (len(command), *command)]
    script(connection, "write")(args=arguments)


def call_replicated(
    script: Script, keys: Sequence[str], arguments: Sequence[Any], replicas: int, connection: Redis
) -> tuple[Any, int]:
    """Calls a script, in one round trip. Returns its reply, and how many replicas have its writes.

    Waits until `replicas` of them have confirmed it, for `REPLICATED_SECONDS` at most; with 0 it does not wait.

    WAIT counts from the last write of its own connection, so a script that is sent again must write again.
    """
    if not replicas:
        return script(keys=keys, args=arguments, client=connection), 0
    for trial in (1, 2):
        with connection.pipeline(transaction=False) as pipeline:
            pipeline.evalsha(script.sha, len(keys), *keys, *arguments)
            pipeline.wait(replicas, int(1000 * REPLICATED_SECONDS))
            reply, confirmed = pipeline.execute(raise_on_error=False)
        if isinstance(reply, NoScriptError) and trial == 1:  # a new primary has no scripts loaded
            connection.script_load(script.script)
            continue
        for answer in (reply, confirmed):
            if isinstance(answer, Exception):
                raise answer
        return reply, confirmed
    raise AssertionError
