"""Plays the worker, one step at a time, for tests of those who wait for it."""

from __future__ import annotations

import redis
from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.jobs import Job, Result, Turn
from sailq.shared.lifecycle import Lifecycle


class Answerer:
    """Does to a job what a worker does, when the test says so."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._lifecycle = Lifecycle(connection, result_ttl=60, conversation_ttl=60)
        self._attempts: dict[str, int] = {}
        self._jobs: dict[str, Job] = {}

    def claim(self, job: str) -> None:
        claim = self._lifecycle.claim(job, "test")
        assert not isinstance(claim, str)
        self._attempts[job] = claim.attempt
        self._jobs[job] = decode(Job, claim.request)

    def say(self, job: str, at: int, text: str) -> None:
        self._connection.xadd(keys.stream(job), {"attempt": self._attempts[job], "at": at, "text": text})

    def finish(self, job: str, text: str) -> None:
        said = self._jobs[job]
        result = Result(job=job, conversation=said.conversation, turn=said.turn, text=text,
                        finish_reason="stop", finished_at=1.0)
        turn = Turn(job=job, turn=said.turn, messages=said.messages, text=text)
        assert self._lifecycle.finish(result, attempt=self._attempts[job], turn=turn)

    def answer(self, job: str, text: str) -> None:
        self.claim(job)
        self.finish(job, text)
