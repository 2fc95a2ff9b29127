"""A job's life in Redis after its submission: claimed, finished once, or cancelled.

Each transition is one Lua script, so that whatever dies between two commands leaves no half state. The
fence is the attempt number: `claim` counts it up, and only the newest attempt may write the result.

A job may have `MAX_ATTEMPTS` attempts that end without a result. A job whose fault may pass moves to its `failed` key
with its result, so that it can be retried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from redis import Redis
from redis.client import Pipeline

from . import keys
from .codec import MAX_RECORD_BYTES, encode
from .errors import BadRequest
from .jobs import Attempt, FramesPart, Result, Turn, parse
from .rqjob import FAILURE_TTL, MAX_ATTEMPTS

STREAM_TTL = 600
"""Seconds that a stream outlives its job: the result has all of its text, and even an empty stream takes 4 KB."""
CLAIMED_TTL = 86_400
"""Seconds that a claimed job's record stays: without it, its result could not be written."""
MAX_HISTORY = 8
"""Attempts that a job remembers. Those that were handed back do not count, so that there may be any number."""

_CLAIM = """
if redis.call('EXISTS', KEYS[2]) == 1 then return {'done'} end
local request = redis.call('HGET', KEYS[1], 'request')
if not request then return {'gone'} end
if redis.call('HGET', KEYS[1], 'claim') == ARGV[7] then  -- the reply to this very claim was lost
  return {'run', string.sub(request, 1, ARGV[6]), redis.call('HGET', KEYS[1], 'attempt'),
          redis.call('HEXISTS', KEYS[1], 'cancel')}
end
local spent = redis.call('HGET', KEYS[1], 'spent') or 0
if ARGV[3] == '0' and spent + 1 >= tonumber(ARGV[4]) then return {'last'} end
redis.call('HINCRBY', KEYS[1], 'spent', 1)
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
local time = redis.call('TIME')
local history = cjson.decode(redis.call('HGET', KEYS[1], 'history') or '[]')
table.insert(history, {attempt = attempt, worker = ARGV[1], started_at = time[1] + time[2] / 1e6})
if #history > tonumber(ARGV[5]) then table.remove(history, 1) end
redis.call('HSET', KEYS[1], 'worker', ARGV[1], 'claim', ARGV[7], 'history', cjson.encode(history))
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return {'run', string.sub(request, 1, ARGV[6]), attempt, redis.call('HEXISTS', KEYS[1], 'cancel')}
"""

_END_ATTEMPT = """
local history = cjson.decode(redis.call('HGET', KEYS[1], 'history') or '[]')
for _, attempt in ipairs(history) do
  if attempt.attempt == tonumber(ARGV[1]) and not attempt.cause then
    attempt.cause = ARGV[2]
    redis.call('HSET', KEYS[1], 'history', cjson.encode(history))
    if ARGV[3] == '0' then redis.call('HINCRBY', KEYS[1], 'spent', -1) end
  end
end
"""

_FINISH = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'attempt', ARGV[1], 'end', '1')
redis.call('EXPIRE', KEYS[3], ARGV[6])
if ARGV[7] ~= '' and redis.call('HEXISTS', KEYS[1], 'request') == 1 then
  redis.call('HSET', KEYS[1], 'result', ARGV[2])
  redis.call('RENAME', KEYS[1], KEYS[5])
  redis.call('EXPIRE', KEYS[5], ARGV[7])
  redis.call('ZADD', KEYS[6], ARGV[8], ARGV[9])
  redis.call('ZREMRANGEBYSCORE', KEYS[6], 0, ARGV[8] - ARGV[7])
  redis.call('EXPIRE', KEYS[6], ARGV[7])
else
  redis.call('DEL', KEYS[1])
end
if ARGV[4] ~= '' then
  redis.call('RPUSH', KEYS[4], ARGV[4])
  redis.call('EXPIRE', KEYS[4], ARGV[5])
end
return 1
"""

_CANCEL = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 'finished' end
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'worker') == 1 then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  return 'running'
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('XADD', KEYS[3], '*', 'attempt', '0', 'end', '1')
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('DEL', KEYS[1])
return 'cancelled'
"""


def keep_blobs(pipeline: Pipeline, parts: Sequence[FramesPart], now: float, ttl: int) -> None:
    """Has the parts' blobs live for `ttl` seconds from `now`, the server's time, in the producers' count of them too.

    The pipeline's first replies to this, one a part, say whether its blob is there.
    """
    for part in parts:
        pipeline.expire(keys.blob(part.blob), ttl)
    for part in parts:
        pipeline.zadd(keys.BLOBS, {keys.blob_name(part.blob): now + ttl}, xx=True, gt=True)


@dataclass(frozen=True)
class Claim:
    """One attempt at a job. `attempt` counts from 1 and fences the writes.

    `request` is the encoded Job, or of one that is too large its beginning, a byte more than may be."""

    request: bytes
    attempt: int
    cancelled: bool


class Lifecycle:
    """The transitions, for one connection. Times to live in seconds."""

    def __init__(self, connection: Redis, *, result_ttl: int, conversation_ttl: int) -> None:
        self._result_ttl = result_ttl
        self._stream_ttl = min(result_ttl, STREAM_TTL)
        self._conversation_ttl = conversation_ttl
        self._connection = connection
        self._claim = connection.register_script(_CLAIM)
        self._end_attempt = connection.register_script(_END_ATTEMPT)
        self._finish = connection.register_script(_FINISH)
        self._cancel = connection.register_script(_CANCEL)

    def claim(self, job_id: str, worker: str, *, alone: bool = False) -> Claim | Literal["done", "gone", "last"]:
        """A new attempt by `worker`; "done" if the job has a result, "gone" if it expired or never was.

        "last" is a job that has one attempt left, which only a worker that runs nothing beside it may make (`alone`).
        """
        reply = self._claim(
            keys=[keys.job(job_id), keys.result(job_id)],
            args=[worker, CLAIMED_TTL, int(alone), MAX_ATTEMPTS, MAX_HISTORY, MAX_RECORD_BYTES + 1,
                  os.urandom(8).hex()],
        )
        state = reply[0].decode()
        if state != "run":
            return state  # type: ignore[no-any-return]
        return Claim(request=reply[1], attempt=int(reply[2]), cancelled=bool(reply[3]))

    def end_attempt(self, job_id: str, attempt: int, cause: str, *, counts: bool = True) -> None:
        """Notes why an attempt ended without a result; without a note, its worker died. Where it does not count, the
        job may have one more."""
        self._end_attempt(keys=[keys.job(job_id)], args=[attempt, cause, int(counts)])

    def may_be_taken(self, job_id: str) -> bool | None:
        """Whether a worker may take the job again: it has attempts left, or a result, which the worker then sees.

        None for one that expired or never was.
        """
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(keys.result(job_id)).hmget(keys.job(job_id), "request", "spent")
            done, (request, spent) = pipeline.execute()
        if done:
            return True
        if request is None:
            return None
        with suppress(ValueError):  # anybody may write to the server
            return int(spent or 0) < MAX_ATTEMPTS
        return False

    def history(self, job_id: str) -> tuple[Attempt, ...]:
        """The job's last attempts in their order, at most `MAX_HISTORY`; none of a job that has ended."""
        noted = self._connection.hget(keys.job(job_id), "history")
        try:
            return tuple(parse(Attempt, attempt) for attempt in json.loads(noted or b"[]"))
        except (BadRequest, TypeError, ValueError):
            return ()

    def finish(self, result: Result, *, attempt: int | None, turn: Turn | None = None) -> bool:
        """Writes the result, ends the stream and adds the turn to its conversation: all of it, or nothing.

        The job's record goes, but of one whose error may pass it is kept for `FAILURE_TTL` seconds.

        False, with nothing written, if the job has a result already or `attempt` is no longer its newest.
        `attempt` None is for a refusal of what was never a job of sailq's.
        """
        kept = FAILURE_TTL if result.error is not None and result.error.may_pass else ""
        done = self._finish(
            keys=[keys.job(result.job), keys.result(result.job), keys.stream(result.job),
                  keys.turns(result.conversation), keys.failed(result.job), keys.FAILED],
            args=["" if attempt is None else attempt, encode(result), self._result_ttl,
                  b"" if turn is None else encode(turn), self._conversation_ttl, self._stream_ttl,
                  kept, result.finished_at, result.job],
        )
        return bool(done)

    def cancel(self, result: Result) -> Literal["finished", "gone", "running", "cancelled"]:
        """Ends a waiting job with `result`, or leaves a mark that its worker sees."""
        state: bytes = self._cancel(
            keys=[keys.job(result.job), keys.result(result.job), keys.stream(result.job)],
            args=[encode(result), self._result_ttl, self._stream_ttl],
        )
        return state.decode()  # type: ignore[return-value]
