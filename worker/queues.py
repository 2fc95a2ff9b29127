"""A worker's queues: that of its model's own name, and that of an alias which several versions of a model share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job as RQJob
from rq.queue import Queue


class ServedQueue(Queue):
    """RQ takes from several queues with BLPOP, which loses the job of a worker that dies just then. This class takes
    from each as RQ does from a single one, by way of a list of what was taken; `Consumer.prepare_job_execution` has RQ
    remove a job from it in any case."""

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Iterable[Queue], timeout: int | None, connection: Redis, **options: Any
    ) -> tuple[RQJob, Queue] | None:
        """What is there, of the first queue that has any; else what comes to the last one within `timeout` seconds.

        A server can move from one list alone when it waits, so an idle worker finds what comes to the others when
        `timeout` is over.
        """
        *others, last = queues
        for queue in others:
            taken = super().dequeue_any([queue], None, connection, **options)
            if taken is not None:
                return taken
        return super().dequeue_any([last], timeout, connection, **options)

    @classmethod
    def _fetch_dequeued_job(  # type: ignore[override]
        cls, connection: Redis, queue_key: str, job_id: str, **options: Any
    ) -> tuple[RQJob, Queue] | None:
        """RQ passes over what has no record any more, and would leave it among the taken jobs for ever."""
        fetched = super()._fetch_dequeued_job(connection, queue_key, job_id, **options)
        if fetched is None:
            connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue_key), 0, job_id)
        return fetched
