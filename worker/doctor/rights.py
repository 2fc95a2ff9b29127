"""What this machine's user may do on the server, against what a worker or a producer does there."""

from __future__ import annotations

from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import DeferredJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from ...shared import keys
from ...shared.connection import connect, server_errors
from ...shared.settings import model_name
from .check import Plan, Verdict, ok, wrong
from .trial import Command, refusals

_ID = "doctor"
_SCRIPT = "0" * 40


def rights(plan: Plan) -> Verdict:
    """Each command that is needed, on each kind of key: none of them is carried out, and what is refused stands in the
    server's ACL LOG. A transaction's own commands are not asked for, because EXEC would."""
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
    """What `producer` and `shared.lifecycle` send, and RQ to submit a job."""
    queue = Queue.redis_queue_namespace_prefix + keys.queue(model)
    deferred, job = DeferredJobRegistry.key_template.format(keys.queue(model)), RQJob.key_for(_ID)
    return [
        ("PING",), ("TIME",), ("SCRIPT", "LOAD", "return 1"), ("PUBLISH", "rq:pubsub:x", "x"),
        ("SMEMBERS", keys.MODELS), ("GET", keys.model(model)), ("ZRANGE", keys.WORKERS, 0, -1),
        ("HGETALL", keys.worker(_ID)),
        ("SET", keys.blob(_ID), "x"), ("EXPIRE", keys.blob(_ID), 1),
        ("EVALSHA", _SCRIPT, 5, queue, deferred, keys.BLOBS, keys.BLOB_SIZES, keys.BLOB_BYTES),
        ("ZADD", keys.BLOBS, 1, "x"), ("HSETNX", keys.BLOB_SIZES, "x", 1), ("INCRBY", keys.BLOB_BYTES, 1),
        ("HSET", keys.job(_ID), "x", "x"), ("HGET", keys.job(_ID), "x"), ("EXPIRE", keys.job(_ID), 1),
        ("GET", keys.result(_ID)), ("EXISTS", keys.result(_ID)),
        ("XREAD", "STREAMS", keys.stream(_ID), 0), ("XADD", keys.stream(_ID), "*", "x", "x"),
        ("EVALSHA", _SCRIPT, 3, keys.job(_ID), keys.result(_ID), keys.stream(_ID)),
        ("HMGET", keys.conversation(_ID), "x"), ("HSET", keys.conversation(_ID), "x", "x"),
        ("LRANGE", keys.turns(_ID), 0, -1), ("ZADD", keys.CONVERSATIONS, 1, "x"),
        ("EXISTS", job), ("HSET", job, "x", "x"), ("EXPIRE", job, 1), ("SADD", "rq:queues", queue),
        ("ZADD", deferred, 1, "x"), ("RPUSH", queue, "x"), ("LPUSH", queue, "x"), ("LLEN", queue),
    ]


def _worker(model: str) -> list[Command]:
    """What `worker` and `shared.lifecycle` send, and RQ to take a job, to keep it and to end it."""
    queue, job = Queue.redis_queue_namespace_prefix + keys.queue(model), RQJob.key_for(_ID)
    registries = (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry, DeferredJobRegistry)
    return [
        ("PING",), ("TIME",), ("INFO", "server"), ("SCRIPT", "LOAD", "return 1"),
        ("SUBSCRIBE", "rq:pubsub:x"),
        ("SET", keys.model(model), "x"), ("SADD", keys.MODELS, "x"), ("HSET", keys.worker(_ID), "x", "x"),
        ("ZADD", keys.WORKERS, 1, "x"), ("ZREMRANGEBYSCORE", keys.WORKERS, 0, 1), ("DEL", keys.worker(_ID)),
        ("GET", keys.blob(_ID)), ("EXPIRE", keys.blob(_ID), 1), ("ZADD", keys.BLOBS, 1, "x"),
        ("HGET", keys.job(_ID), "x"), ("RENAME", keys.job(_ID), keys.failed(_ID)), ("ZADD", keys.FAILED, 1, "x"),
        ("SET", keys.result(_ID), "x"), ("XADD", keys.stream(_ID), "*", "x", "x"), ("RPUSH", keys.turns(_ID), "x"),
        ("EVALSHA", _SCRIPT, 2, keys.job(_ID), keys.result(_ID)),
        ("SET", keys.maintenance(keys.queue(model)), "x"), ("HSET", keys.taken(keys.queue(model)), "x", "x"),
        ("SET", keys.tidied(keys.queue(model)), "x"), ("MEMORY", "USAGE", job),
        ("BLMOVE", queue, f"{queue}:intermediate", "RIGHT", "LEFT", 1), ("LPUSH", queue, "x"), ("LREM", queue, 0, "x"),
        ("HSET", job, "x", "x"), ("DEL", job), ("SADD", "rq:workers", "x"), ("HSET", "rq:worker:x", "x", "x"),
        *(("ZADD", registry.key_template.format(keys.queue(model)), 1, "x") for registry in registries),
    ]
