"""Finds the commands that a role needs and that the server would refuse its user. Executes none of them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal

import redis

from sailq.shared import keys, scripts

Role = Literal["producer", "worker"]
_ID = "id"
_SEEDS, _RUNS = 4, 500
"""Each call of 500 runs takes the server up to 50 ms. 2,000 runs reach every command of a script."""
_DIRECT = "for _, command in ipairs(cjson.decode(ARGV[1])) do redis.call(unpack(command)) end"
_JOB, _RESULT, _INBOX, _STREAM = keys.job(_ID), keys.result(_ID), keys.inbox(_ID), keys.stream(_ID)
_GATEWAY_JOBS, _GATEWAY_REQUEST = keys.gateway_jobs(_ID), keys.gateway_request(_ID, _ID)


def refused(connection: redis.Redis, role: Role, queue: str) -> list[str]:
    """The refused commands, sorted: the name, the first argument, and all keys. An id is "id" or "other".

    Leaves one script in the server's cache of scripts. Raises redis.NoPermissionError if the user may not load or run
    scripts.
    """
    sha = connection.script_load(files(__package__).joinpath("dry_run.lua").read_text())
    direct = json.dumps(_direct(role, queue))
    found: set[bytes] = set(connection.evalsha(sha, 0, _DIRECT, 0, 1, queue, direct))
    for name in scripts.PRODUCER if role == "producer" else scripts.WORKER:
        names, arguments = _call(name, queue)
        body = scripts.text(name).partition("\n")[2]
        for seed in range(_SEEDS):
            found.update(connection.evalsha(sha, len(names), *names, body, seed, _RUNS, queue, *arguments))
    return sorted(command.decode() for command in found)


def _call(name: str, queue: str) -> tuple[list[str], list[str]]:
    """The KEYS and the ARGV of a script. The head of its file says what they are."""
    waiting = keys.waiting(queue)
    return {
        "submit": (
            [_JOB, _RESULT, waiting],
            [_ID, queue, "id or other", "1", *["5"] * 4, "1000", "1", "01", _ID, _ID, _ID, "1", _ID, "1"],
        ),
        "cancel": ([_JOB, _RESULT], [_ID, *["1"] * 8]),
        "hold": ([_JOB], [_ID, *["1"] * 3, _ID, "1"]),
        "clear": ([keys.turns(_ID), keys.conversation_clips(_ID)], [_ID]),
        "follow": ([_JOB, _RESULT], ["id or other"]),
        "admit": ([keys.gateway_rate(_ID), _GATEWAY_JOBS], ["1", "1", "1", _ID]),
        "claim": ([waiting], [_ID, _ID, *["1"] * 8]),
        "begin": ([_JOB], [_ID]),
        "renew": ([f"rq:wip:{queue}"], ["1", f"{_ID}:{_ID}", f"{_ID}:{_ID}"]),
        "finish": ([_JOB, _RESULT], [_ID, "id or none", *["1"] * 5, "finished", *["1"] * 7]),
        "release": ([_JOB], [_ID, _ID, "1", "1"]),
        "recover": ([waiting], [_ID, *["1"] * 5]),
        "say": ([_STREAM], ["1"] * 5),
    }[name]


def _direct(role: Role, queue: str) -> list[tuple[str, ...]]:
    """The commands that a role sends outside of scripts."""
    if role == "producer":
        return [
            ("PING",), ("TIME",), ("WAIT", "1", "1"), ("SADD", "rq:queues", "x"),
            ("SMEMBERS", keys.MODELS), ("GET", keys.model(_ID)),
            ("ZRANGE", keys.WORKERS, "0", "-1"), ("HGETALL", keys.worker(_ID)),
            ("EXISTS", _JOB), ("EXISTS", _RESULT), ("HGETALL", _JOB), ("HMGET", _JOB, "x"),
            ("GET", _RESULT), ("MGET", _RESULT), ("LRANGE", keys.turns(_ID), "0", "-1"),
            ("XADD", _INBOX, "*", "x", "x"), ("EXPIRE", _INBOX, "1"), ("XREVRANGE", _INBOX, "+", "-"),
            ("XREAD", "STREAMS", _INBOX, _STREAM, "0", "0"),
            ("SET", _GATEWAY_REQUEST, "x"), ("GET", _GATEWAY_REQUEST), ("ZREM", _GATEWAY_JOBS, "x"),
        ]
    record = f"rq:worker:{_ID}"  # RQ's
    return [
        ("PING",), ("TIME",), ("INFO",), ("WAIT", "1", "1"), ("MULTI",), ("EXEC",),
        ("GET", keys.NEWEST), ("SET", keys.NEWEST, "x"), ("SET", keys.model(_ID), "x"), ("SADD", keys.MODELS, "x"),
        ("EXPIRE", keys.model(_ID), "1"),
        ("HSET", keys.worker(_ID), "x", "x"), ("EXPIRE", keys.worker(_ID), "1"), ("DEL", keys.worker(_ID)),
        ("ZADD", keys.WORKERS, "1", "x"), ("ZREMRANGEBYSCORE", keys.WORKERS, "0", "1"), ("ZREM", keys.WORKERS, "x"),
        ("BLPOP", keys.bell(queue), "1"), ("HGETALL", _JOB), ("HGET", _JOB, "x"), ("HGET", keys.clip(_ID), "x"),
        ("HSET", record, "x", "x"), ("EXPIRE", record, "1"), ("DEL", record),
        ("SADD", "rq:workers", "x"), ("SREM", "rq:workers", "x"),
        ("SADD", f"rq:workers:{queue}", "x"), ("SREM", f"rq:workers:{queue}", "x"),
        ("SUBSCRIBE", f"rq:pubsub:{_ID}"), ("UNSUBSCRIBE", f"rq:pubsub:{_ID}"),
    ]
