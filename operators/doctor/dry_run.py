"""Finds out which commands a server would refuse, without executing them."""

from __future__ import annotations

from collections.abc import Sequence

import redis

Command = tuple[str | float, ...]


def refusals(connection: redis.Redis, commands: Sequence[Command]) -> list[redis.ResponseError | None]:
    """For each command, the error with which the server refuses it; None: the server would execute it.

    The commands are queued in a transaction that is never executed. The server checks rights, memory and its role when
    it queues a command, not only when it executes it.
    """
    pool = connection.connection_pool
    link = pool.get_connection()
    try:
        link.send_command("MULTI")
        refused = _reply(link)
        if refused is not None:  # outside a transaction, commands would be executed
            return [refused] * len(commands)
        link.send_packed_command(link.pack_commands(commands))
        return [_reply(link) for _ in commands]
    finally:
        link.disconnect()  # ends the transaction; not every user may DISCARD
        pool.release(link)


def _reply(link: redis.Connection) -> redis.ResponseError | None:
    try:
        link.read_response()
    except redis.ResponseError as error:
        return error
    return None
