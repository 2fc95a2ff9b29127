"""Jobs that failed for reasons outside the job: list them, retry them, or drop them."""

from __future__ import annotations

import secrets
from contextlib import suppress

import redis

from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.connection import ServerClock, server_errors
from sailq.shared.errors import BadMedia, BadRequest, DeadlineExceeded, NotFound
from sailq.shared.jobs import Result
from sailq.shared.rqjob import at, queue_of, read_job
from sailq.shared.scripts import script
from sailq.shared.settings import Settings


class Failures:
    """The failed jobs of one server. Every method raises ServerUnavailable when it does not answer."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._connection, self._settings = connection, settings
        self._retry, self._drop = script(connection, "retry"), script(connection, "drop")
        self._clock = ServerClock(connection)

    def results(self, model: str | None = None) -> list[Result]:
        """The results of failed jobs, newest first. With `model`, only of jobs that asked for it or that it ran."""
        with server_errors(self._connection):
            names = [key.decode().removeprefix(keys.waiting("")) for key in self._connection.smembers("rq:queues")]
            queues = sorted(name for name in names if name.startswith(keys.queue("")))
            with self._connection.pipeline(transaction=False) as pipeline:
                for queue in queues:
                    pipeline.zrevrange(keys.failed(queue), 0, -1)
                jobs = [(queue, job) for queue, some in zip(queues, pipeline.execute(), strict=True) for job in some]
                for _, job in jobs:
                    pipeline.hget(keys.job(job.decode(errors="replace")), "result_record")
                found = pipeline.execute()
        results = []
        for (queue, _), data in zip(jobs, found, strict=True):
            if data:  # failed jobs expire one by one
                with suppress(BadRequest):  # a result of another version does not hide the others
                    result = decode(Result, data)
                    if model is None or model == result.model or keys.queue(model) == queue:
                        results.append(result)
        return sorted(results, key=lambda result: -result.finished_at)

    def retry(self, job: str) -> None:
        """Puts a failed job back on its queue. It gets all its attempts again, and its result is deleted.

        Raises NotFound, BadMedia if its frames have expired, and DeadlineExceeded. The job is not changed then.
        """
        with server_errors(self._connection):
            now, fields = self._clock.now(), self._connection.hgetall(keys.job(job))
            if fields.get(b"status") != b"failed":
                raise _not_failed(job)
            deadline = read_job(job, queue_of(fields), fields).deadline
            if deadline is not None and deadline <= now:
                raise DeadlineExceeded(f"The deadline of job {job!r} has passed.")
            state = self._retry(
                keys=[keys.job(job)],
                args=[job, now, at(now), self._settings.job_ttl, self._settings.blob_ttl],
            )
        if state == b"gone":
            raise _not_failed(job)
        if state == b"clips":
            raise BadMedia(f"The frames of job {job!r} have expired; submit it again.")

    def drop(self, job: str) -> None:
        """Deletes a failed job. Its result expires by itself. Raises NotFound."""
        with server_errors(self._connection):
            dropped = self._drop(keys=[keys.job(job)], args=[job, secrets.token_hex(8)])
        if not dropped:
            raise _not_failed(job)


def _not_failed(job: str) -> NotFound:
    return NotFound(f"There is no failed job {job!r}: it was retried or dropped, it expired, or it never failed.")
