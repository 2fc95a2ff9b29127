"""Plays the worker, one step at a time, for tests of clients that wait for results."""

from __future__ import annotations

import redis

from sailq.shared import keys
from sailq.shared.jobs import Job, Result, Turn
from sailq.shared.rqjob import read_job
from sailq.shared.settings import Settings
from sailq.worker.queue.job_store import Claim, JobStore, new_execution

TTLS = Settings(result_ttl=60, conversation_ttl=60)


def take(store: JobStore, connection: redis.Redis, job: str) -> Claim:
    """Claims this job, wherever it is on its queue."""
    queue = connection.hget(keys.job(job), "origin").decode()
    connection.lrem(keys.waiting(queue), 0, job)
    connection.hset(keys.job(job), "status", "queued")
    connection.lpush(keys.waiting(queue), job)
    claim = store.claim([queue], new_execution(), 1.0)
    assert claim is not None and claim.job == job
    return claim


class Answerer:
    """Does what a worker does with a job, when the test calls it."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._store = JobStore(connection, connection, TTLS, "test")
        self._claims: dict[str, Claim] = {}
        self._jobs: dict[str, Job] = {}

    def claim(self, job: str) -> None:
        claim = take(self._store, self._connection, job)
        self._claims[job], self._jobs[job] = claim, read_job(job, claim.queue, claim.fields)

    def say(self, job: str, at: int, text: str) -> None:
        self._connection.xadd(keys.stream(job), {"attempt": self._claims[job].attempt, "at": at, "text": text})

    def finish(self, job: str, text: str) -> None:
        said = self._jobs[job]
        result = Result(job=job, conversation=said.conversation, turn=said.turn, text=text,
                        finish_reason="stop", finished_at=1.0)
        turn = Turn(job=job, turn=said.turn, messages=said.messages, text=text)
        assert self._store.finish(job, self._claims[job].execution, result, turn)

    def answer(self, job: str, text: str) -> None:
        self.claim(job)
        self.finish(job, text)
