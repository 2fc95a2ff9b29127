"""A worker's attempts at jobs, step by step, for the tests of the scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import redis

from sailq.shared import keys
from sailq.shared.jobs import Failure, FramesPart, Job, Message, Result, TextPart, Turn
from sailq.worker.queue.job_store import Claim, JobStore, new_execution

QUEUE = keys.queue("sailq-tiny")
HELLO = [{"role": "user", "content": "Hello"}]
PIXELS = bytes(28 * 28 * 3)
CLIP = hashlib.sha256(PIXELS).hexdigest()
LOOKED, LAST_LOOK = "sailq:looked", "sailq:last-look"


def claim(store: JobStore) -> Claim | None:
    return store.claim([QUEUE], new_execution(), 1.0)


def claimed(store: JobStore) -> Claim:
    found = claim(store)
    assert found is not None
    return found


def result(job: str, code: str = "", conversation: str = "") -> Result:
    return Result(job=job, conversation=conversation or job, turn=0, finish_reason="error" if code else "stop",
                  error=Failure(code=code, message="It broke.") if code else None, finished_at=1.0)


def turn(job: str) -> Turn:
    said = Message(role="user", content=(TextPart(type="text", text="Hello"),))
    return Turn(job=job, turn=0, messages=(said,), text="Hi")


def status(connection: redis.Redis, job: str) -> str | None:
    found = connection.hget(keys.job(job), "status")
    return None if found is None else found.decode()


def abandon(connection: redis.Redis, claim: Claim) -> None:
    """Makes the attempt look as if its worker had died: ends its lease."""
    connection.zadd(keys.LEASES, {claim.lease: 1}, xx=True)


def everything(connection: redis.Redis) -> dict[bytes, Any]:
    """All keys and values of the server, without their TTLs."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": connection.get, b"hash": connection.hgetall, b"set": connection.smembers,
        b"list": lambda key: connection.lrange(key, 0, -1), b"stream": connection.xrange,
        b"zset": lambda key: connection.zrange(key, 0, -1, withscores=True),
    }
    return {key: readers[connection.type(key)](key) for key in connection.scan_iter()}


def clip_job(job: str, conversation: str = "") -> Job:
    part = FramesPart(type="image", blob=CLIP, frames=1, height=28, width=28)
    return Job(id=job, conversation=conversation or job, model="sailq-tiny", submitted_at=1.0,
               messages=(Message(role="user", content=(part,)),))
