"""A turn's way into Redis: blobs, the job's record, its place in the conversation, RQ's queue."""

from __future__ import annotations

from collections.abc import Mapping

import redis
from redis.client import Pipeline
from rq.job import Dependency, Retry
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import FailedJobRegistry
from rq.results import Result as RQResult

from ..shared import keys
from ..shared.codec import decode, encode
from ..shared.jobs import Job, Result
from ..shared.rqjob import FAILURE_TTL, FUNCTION, MAX_ATTEMPTS, LockedJob, Serializer
from ..shared.settings import Settings

_RQ_RESULT_TTL = 60
"""Seconds that RQ remembers a finished job. With 0, RQ 3.0 fails to close a job that was run twice: deleting
it, it asks for the execution that died, whose record has expired."""
_SERVER_VERSION = (5, 0, 9)
"""What RQ takes a server for that keeps its version to itself; it submits to newer ones in the same way. It would ask
INFO, which a producer need not be allowed, and while a transaction is being built."""


class Submitter:
    """Puts jobs on queues, each conversation's turns in order."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._queues: dict[str, Queue] = {}

    def put_blobs(self, blobs: Mapping[str, bytes]) -> None:
        """Uploads what the server does not have yet, and gives all of it its full time to live."""
        if not blobs:
            return
        ttl = self._settings.blob_ttl
        digests = list(blobs)
        with self._connection.pipeline(transaction=False) as pipeline:
            for digest in digests:
                pipeline.expire(keys.blob(digest), ttl)
            known = pipeline.execute()
            for digest, there in zip(digests, known, strict=True):
                if not there:
                    pipeline.set(keys.blob(digest), blobs[digest], ex=ttl)
            pipeline.execute()

    def put_job(self, job: Job) -> Job:
        """Enqueues `job` as its conversation's next turn and returns it with that turn's number.

        The conversation's counter, the job's record and RQ's entry change in one transaction. A turn whose
        predecessor is unfinished waits for it in RQ as a dependent that allows failure, so that a failed turn
        never blocks its conversation.
        """
        conversation = keys.conversation(job.conversation)
        with self._connection.pipeline() as pipeline:
            while True:
                try:
                    pipeline.watch(conversation)
                    turns, last = pipeline.hmget(conversation, "turns", "last")
                    numbered = job.model_copy(update={"turn": int(turns or 0)})
                    previous = last.decode() if last else None
                    if previous is not None:
                        # What RQ has forgotten has ended, and need not be waited for.
                        pipeline.watch(RQJob.key_for(previous))
                        if not pipeline.exists(RQJob.key_for(previous)):
                            previous = None
                    self._enqueue(pipeline, numbered, previous)
                    self._note_turn(pipeline, numbered)
                    pipeline.execute()
                    return numbered
                except redis.WatchError:
                    # redis-py says the same of a lost reply; enqueued again, the job would wait for itself.
                    if (turn := self._turn_of(job)) is not None:
                        return job.model_copy(update={"turn": turn})

    def retry_job(self, job: Job) -> bool:
        """Enqueues a failed job again, as the turn that it was, with nothing left of its failure.

        All changes in one transaction; False, with nothing changed, if the job is not among the failed ones any more.
        """
        failed = keys.failed(job.id)
        with self._connection.pipeline() as pipeline:
            while True:
                try:
                    pipeline.watch(failed)
                    if not pipeline.exists(failed):
                        return False
                    attempt = pipeline.hget(failed, "attempt") or 0
                    pipeline.multi()
                    forget_failure(pipeline, job)
                    pipeline.delete(keys.result(job.id), keys.stream(job.id))
                    self._enqueue(pipeline, job, None)
                    pipeline.hset(keys.job(job.id), "attempt", attempt)  # a worker that returns is still fenced off
                    pipeline.execute()
                    return True
                except redis.WatchError:
                    continue

    def _turn_of(self, job: Job) -> int | None:
        """The turn that an enqueued job has become, from its record or its result; None before that."""
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.hget(keys.job(job.id), "request").get(keys.result(job.id))
            request, result = pipeline.execute()
        if request is not None:
            return decode(Job, request).turn
        return None if result is None else decode(Result, result).turn

    def _enqueue(self, pipeline: Pipeline, job: Job, previous: str | None) -> None:
        settings = self._settings
        queue = self._queue(job.model)
        rq_job = queue.create_job(
            FUNCTION,
            args=(job.id,),
            job_id=job.id,
            timeout=-1,
            result_ttl=_RQ_RESULT_TTL,
            failure_ttl=FAILURE_TTL,
            # Longer than the job: a turn that waits for one that RQ forgot would wait for ever, and so would
            # each after it. A worker that meets an expired job says so, and the next turn's time has come.
            ttl=settings.job_ttl + FAILURE_TTL,
            description=f"sailq {job.conversation} #{job.turn}",
            retry=Retry(max=MAX_ATTEMPTS - 1),
            depends_on=Dependency(jobs=[previous], allow_failure=True) if previous else None,
        )
        rq_job.enqueue_at_front = job.priority == "high"  # also when its turn comes
        # RQ starts the transaction itself, after it has watched what the job depends on.
        queue.enqueue_job(rq_job, pipeline=pipeline, at_front=rq_job.enqueue_at_front)
        pipeline.hset(keys.job(job.id), "request", encode(job))
        pipeline.expire(keys.job(job.id), settings.job_ttl)

    def _note_turn(self, pipeline: Pipeline, job: Job) -> None:
        """`job` is its conversation's newest turn."""
        settings = self._settings
        conversation = keys.conversation(job.conversation)
        pipeline.hset(conversation, mapping={"turns": job.turn + 1, "last": job.id})
        pipeline.expire(conversation, settings.conversation_ttl)
        pipeline.expire(keys.turns(job.conversation), settings.conversation_ttl)
        pipeline.zadd(keys.CONVERSATIONS, {job.conversation: job.submitted_at})
        pipeline.zremrangebyscore(keys.CONVERSATIONS, 0, job.submitted_at - settings.conversation_ttl)

    def _queue(self, model: str) -> Queue:
        if model not in self._queues:
            queue = Queue(keys.queue(model), connection=self._connection, job_class=LockedJob, serializer=Serializer)
            queue.redis_server_version = _SERVER_VERSION  # else RQ asks for it
            self._queues[model] = queue
        return self._queues[model]


def forget_failure(pipeline: Pipeline, job: Job) -> None:
    """Removes a failed job from sailq's and RQ's failed ones; its result stays, as for any other job."""
    pipeline.delete(keys.failed(job.id), RQJob.key_for(job.id), RQResult.get_key(job.id))
    pipeline.zrem(keys.FAILED, job.id)
    pipeline.zrem(FailedJobRegistry.key_template.format(keys.queue(job.model)), job.id)
