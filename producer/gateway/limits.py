"""Applies the limits of a key, which all gateways on one server count together."""

from __future__ import annotations

import math

import redis.asyncio

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.scripts import text

from ..openai_api.errors import ApiError
from .keys import Caller


class Limits:
    """Counts requests and jobs of callers that have limits. Raises ServerUnavailable."""

    def __init__(self, connection: redis.asyncio.Redis) -> None:
        self._connection = connection
        self._admit = connection.register_script(text("admit"))

    async def admit(self, caller: Caller, job: str) -> None:
        """Counts a request, and its job until `release`. Raises ApiError (429) if a limit is reached."""
        if caller.rate is None and caller.max_queued is None:
            return
        with server_errors(self._connection):
            state, value = await self._admit(
                keys=[keys.gateway_rate(caller.id), keys.gateway_jobs(caller.id)],
                args=[caller.rate or 0, caller.burst, caller.max_queued or 0, job],
            )
        if state == b"rate":
            raise _too_many(f"This key may send {caller.rate:g} requests a second.", math.ceil(value / 1000))
        if state == b"jobs":
            raise _too_many(f"This key has {value} jobs that wait or run; its limit is {caller.max_queued}.", 1)

    async def release(self, caller: Caller, job: str) -> None:
        """Notes that a job has ended."""
        if caller.max_queued is not None:
            with server_errors(self._connection):
                await self._connection.zrem(keys.gateway_jobs(caller.id), job)


def _too_many(message: str, seconds: int) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", type="rate_limit_error",
                    headers={"Retry-After": str(max(1, seconds))})
