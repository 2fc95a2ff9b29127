"""A worker's queues: that of its model's own name, and that of an alias which several versions of a model share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis
from rq.job import Job as RQJob
from rq.queue import Queue


class ServedQueue(Queue):
    """RQ takes from several queues with BLPOP, which loses the job of a worker that dies just then. This class moves
    jobs from every queue to its list of taken ones."""

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
