"""Checks that the server's ACL lets this machine's user run every command that its role needs."""

from __future__ import annotations

from sailq.shared import keys
from sailq.shared.checks import Plan, Verdict, ok, wrong
from sailq.shared.connection import connect, server_errors
from sailq.shared.settings import model_name

from .dry_run import Command, refusals

_ID = "doctor"
_SCRIPT = "0" * 40


def rights(plan: Plan) -> Verdict:
    """Checks each command that the role needs on each kind of key.

    The server executes none of them, but logs refused ones in its ACL LOG. MULTI, EXEC and DISCARD are not checked:
    EXEC would execute the others.
    """
    model = model_name(plan.model)
    commands = _worker(model) if plan.worker else _producer(model)
    role = "worker" if plan.worker else "producer"
    with connect(plan.redis_url, retries=0) as connection, server_errors(connection):
        user = connection.connection_pool.connection_kwargs.get("username") or "default"
        refused = [
            (command, error) for command, error in zip(commands, refusals(connection, commands), strict=True) if error
        ]
    if not refused:
        return ok(f"the user {user!r} may do all that a {role} does")
    command, error = refused[0]
    more = f", and {len(refused) - 1} more of {len(commands)} commands" if len(refused) > 1 else ""
    return wrong(
        f"The user {user!r} may not do what a {role} does: {_shown(command)}{more} ({str(error).rstrip('.')}). "
        f"deploy/redis makes a user for it.",
        f'export "$(cat {role}.env)"',
    )


def _shown(command: Command) -> str:
    return " ".join(str(word) for word in command[:2])


def _producer(model: str) -> list[Command]:
    """The commands that `producer` sends and that its scripts call."""
    name = keys.queue(model)
    queue, deferred, waiting = keys.waiting(name), f"rq:deferred:{name}", f"{keys.conversation(_ID)}:waiting"
    return [
        ("PING",), ("TIME",), ("SCRIPT", "LOAD", "return 1"), ("PUBLISH", "rq:pubsub:x", "x"),
        ("SMEMBERS", keys.MODELS), ("GET", keys.model(model)), ("ZRANGE", keys.WORKERS, 0, -1),
        ("HGETALL", keys.worker(_ID)),
        ("EVALSHA", _SCRIPT, 3, keys.job(_ID), keys.result(_ID), queue),
        ("EVALSHA", _SCRIPT, 2, keys.turns(_ID), keys.conversation_clips(_ID)),
        ("HSET", keys.clip(_ID), "data", "x"), ("EXPIRE", keys.clip(_ID), 1), ("HEXISTS", keys.clip(_ID), "data"),
        ("HDEL", keys.clip(_ID), "x"), ("HSTRLEN", keys.clip(_ID), "data"), ("UNLINK", keys.clip(_ID)),
        ("ZADD", keys.CLIPS, 1, "x"), ("ZREM", keys.CLIPS, "x"),
        ("INCRBY", keys.CLIP_BYTES, 1), ("DECRBY", keys.CLIP_BYTES, 1), ("GET", keys.CLIP_BYTES),
        ("EXISTS", keys.job(_ID), keys.result(_ID), keys.turns(_ID)), ("HGETALL", keys.job(_ID)),
        ("HMGET", keys.job(_ID), "x"), ("HSET", keys.job(_ID), "x", "x"), ("EXPIRE", keys.job(_ID), 1),
        ("DEL", keys.job(_ID)), ("SMEMBERS", f"{keys.job(_ID)}:dependents"),
        ("MGET", keys.result(_ID)), ("SET", keys.result(_ID), "x"),
        ("XREAD", "STREAMS", keys.inbox(_ID), keys.stream(_ID), 0, 0), ("XADD", keys.stream(_ID), "*", "x", "x"),
        ("XADD", keys.inbox(_ID), "*", "x", "x"), ("XREVRANGE", keys.inbox(_ID), "+", "-"),
        ("EXPIRE", keys.inbox(_ID), 1),
        ("HGET", keys.conversation(_ID), "x"), ("HMGET", keys.conversation(_ID), "x"),
        ("HSET", keys.conversation(_ID), "x", "x"),
        ("LRANGE", keys.turns(_ID), 0, -1), ("RPUSH", waiting, "x"), ("LPOP", waiting), ("LREM", waiting, 0, "x"),
        ("SMEMBERS", keys.conversation_clips(_ID)), ("ZADD", keys.CONVERSATIONS, 1, "x"),
        ("SADD", "rq:queues", queue), ("RPUSH", queue, "x"), ("LPUSH", queue, "x"), ("LLEN", queue),
        ("LREM", queue, 0, "x"), ("LLEN", keys.bell(name)), ("RPUSH", keys.bell(name), "x"),
        ("ZADD", deferred, 1, "x"), ("ZREM", deferred, "x"), ("ZCARD", deferred),
        ("ZREM", f"rq:scheduled:{name}", "x"), ("ZADD", f"rq:wip:{name}", "XX", 1, "x"),
    ]


def _worker(model: str) -> list[Command]:
    """The commands that `worker` sends, that its scripts call, and that RQ sends to register the worker."""
    name = keys.queue(model)
    queue, wip, job = keys.waiting(name), f"rq:wip:{name}", keys.job(_ID)
    return [
        ("PING",), ("TIME",), ("INFO", "server"), ("SCRIPT", "LOAD", "return 1"),
        ("SUBSCRIBE", "rq:pubsub:x"), ("EXISTS", "rq:suspended"),
        ("SET", keys.model(model), "x"), ("SADD", keys.MODELS, "x"), ("HSET", keys.worker(_ID), "x", "x"),
        ("ZADD", keys.WORKERS, 1, "x"), ("ZREMRANGEBYSCORE", keys.WORKERS, 0, 1), ("DEL", keys.worker(_ID)),
        ("SADD", "rq:workers", "x"), ("HSET", "rq:worker:x", "x", "x"),
        ("BLPOP", keys.bell(name), 1), ("RPUSH", keys.bell(name), "x"),
        ("EVALSHA", _SCRIPT, 1, queue), ("EVALSHA", _SCRIPT, 1, wip),
        ("EVALSHA", _SCRIPT, 2, job, keys.result(_ID)),
        ("LPOP", queue), ("LPUSH", queue, "x"), ("TTL", job), ("HGETALL", job), ("HSET", job, "x", "x"),
        ("EXPIRE", job, 1), ("PERSIST", job), ("DEL", job),
        ("ZADD", keys.LEASES, 1, "x"), ("ZMSCORE", keys.LEASES, "x"), ("ZADD", wip, 1, "x"),
        ("ZADD", f"rq:executions:{_ID}", 1, "x"), ("HSET", "rq:execution:x", "x", "x"),
        ("SET", keys.result(_ID), "x"), ("XADD", keys.stream(_ID), "*", "x", "x"),
        ("XADD", keys.inbox(_ID), "*", "x", "x"), ("XADD", f"rq:results:{_ID}", "*", "x", "x"),
        ("XADD", keys.RESULTS, "*", "x", "x"),
        ("RPUSH", keys.turns(_ID), "x"), ("LRANGE", keys.turns(_ID), 0, -1), ("MEMORY", "USAGE", keys.turns(_ID)),
        ("ZADD", keys.CONVERSATIONS, 1, "x"), ("LPOS", f"{keys.conversation(_ID)}:waiting", "x"),
        ("HGET", keys.clip(_ID), "data"), ("UNLINK", keys.clip(_ID)), ("DECRBY", keys.CLIP_BYTES, 1),
        ("SET", "sailq:looked", "x"), ("SET", "sailq:last-look", "x"),
        *(("ZADD", f"rq:{state}:{name}", 1, "x") for state in ("finished", "failed", "deferred", "canceled")),
    ]
