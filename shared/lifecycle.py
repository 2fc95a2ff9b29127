"""A job's life in Redis after its submission: claimed, finished once, or cancelled.

Each transition is one Lua script, so that whatever dies between two commands leaves no half state. The
fence is the attempt number: `claim` counts it up, and only the newest attempt may write the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redis import Redis

from . import keys
from .codec import encode
from .jobs import Result, Turn

STREAM_TTL = 600
"""Seconds that a stream outlives its job: the result has all of its text, and even an empty stream takes 4 KB."""
CLAIMED_TTL = 86_400
"""Seconds that a claimed job's record stays: without it, its result could not be written."""

_CLAIM = """
if redis.call('EXISTS', KEYS[2]) == 1 then return {'done'} end
local request = redis.call('HGET', KEYS[1], 'request')
if not request then return {'gone'} end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'worker', ARGV[1])
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return {'run', request, attempt, redis.call('HEXISTS', KEYS[1], 'cancel')}
"""

_FINISH = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'attempt', ARGV[1], 'end', '1')
redis.call('EXPIRE', KEYS[3], ARGV[6])
redis.call('DEL', KEYS[1])
if ARGV[4] ~= '' then
  redis.call('RPUSH', KEYS[4], ARGV[4])
  redis.call('EXPIRE', KEYS[4], ARGV[5])
end
return 1
"""

_CANCEL = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 'finished' end
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'attempt') == 1 then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  return 'running'
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('XADD', KEYS[3], '*', 'attempt', '0', 'end', '1')
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('DEL', KEYS[1])
return 'cancelled'
"""


@dataclass(frozen=True)
class Claim:
    """One attempt at a job. `request` is the encoded Job; `attempt` counts from 1 and fences the writes."""

    request: bytes
    attempt: int
    cancelled: bool


class Lifecycle:
    """The transitions, for one connection. Times to live in seconds."""

    def __init__(self, connection: Redis, *, result_ttl: int, conversation_ttl: int) -> None:
        self._result_ttl = result_ttl
        self._stream_ttl = min(result_ttl, STREAM_TTL)
        self._conversation_ttl = conversation_ttl
        self._claim = connection.register_script(_CLAIM)
        self._finish = connection.register_script(_FINISH)
        self._cancel = connection.register_script(_CANCEL)

    def claim(self, job_id: str, worker: str) -> Claim | Literal["done", "gone"]:
        """A new attempt by `worker`; "done" if the job has a result, "gone" if it expired or never was."""
        reply = self._claim(keys=[keys.job(job_id), keys.result(job_id)], args=[worker, CLAIMED_TTL])
        state = reply[0].decode()
        if state != "run":
            return "done" if state == "done" else "gone"
        return Claim(request=reply[1], attempt=int(reply[2]), cancelled=bool(reply[3]))

    def finish(self, result: Result, *, attempt: int | None, turn: Turn | None = None) -> bool:
        """Writes the result, ends the stream and adds the turn to its conversation: all of it, or nothing.

        False, with nothing written, if the job has a result already or `attempt` is no longer its newest.
        `attempt` None is for a refusal of what was never a job of sailq's.
        """
        done = self._finish(
            keys=[keys.job(result.job), keys.result(result.job), keys.stream(result.job),
                  keys.turns(result.conversation)],
            args=["" if attempt is None else attempt, encode(result), self._result_ttl,
                  b"" if turn is None else encode(turn), self._conversation_ttl, self._stream_ttl],
        )
        return bool(done)

    def cancel(self, result: Result) -> Literal["finished", "gone", "running", "cancelled"]:
        """Ends a waiting job with `result`, or leaves a mark that its worker sees."""
        state: bytes = self._cancel(
            keys=[keys.job(result.job), keys.result(result.job), keys.stream(result.job)],
            args=[encode(result), self._result_ttl, self._stream_ttl],
        )
        return state.decode()  # type: ignore[return-value]
