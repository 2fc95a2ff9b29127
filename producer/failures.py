"""Jobs that failed though the fault need not be theirs: what became of them, once more, or never again."""

from __future__ import annotations

from contextlib import suppress

import redis

from ..shared import keys
from ..shared.codec import decode
from ..shared.connection import ServerClock, server_errors
from ..shared.errors import BadMedia, BadRequest, DeadlineExceeded, NotFound
from ..shared.jobs import Job, Result, media_parts
from ..shared.lifecycle import keep_blobs
from ..shared.settings import Settings
from .submission import Submitter, forget_failure


class Failures:
    """The failed jobs of one server. Every method raises ServerUnavailable when it does not answer."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._submitter = Submitter(connection, settings)
        self._clock = ServerClock(connection)

    def results(self, model: str | None = None) -> list[Result]:
        """How they failed, the newest first; with `model`, only the jobs that asked for it or that it ran."""
        with server_errors(self._connection):
            jobs = [job.decode() for job in self._connection.zrevrange(keys.FAILED, 0, -1)]
            with self._connection.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    pipeline.hmget(keys.failed(job), "result", "request")
                found = pipeline.execute()
        results = []
        for data, request in found:
            if data and request:  # they expire one by one
                with suppress(BadRequest):  # one of another version hides no other
                    result = decode(Result, data)
                    if model is None or model in {result.model, decode(Job, request).model}:
                        results.append(result)
        return results

    def retry(self, job_id: str) -> None:
        """Puts a job back on its queue as if it were new: all its attempts, no result.

        Raises NotFound, BadMedia where its frames have expired, and DeadlineExceeded: such a job stays as it is.
        """
        with server_errors(self._connection):
            now, ttl = self._clock.now(), self._settings.blob_ttl
            job = self._request(job_id).model_copy(update={"submitted_at": now})
            if job.deadline is not None and job.deadline <= now:
                raise DeadlineExceeded(f"The deadline of job {job_id!r} has passed.")
            parts = media_parts(job.messages)
            with self._connection.pipeline(transaction=False) as pipeline:
                keep_blobs(pipeline, parts, now, ttl)
                if not all(pipeline.execute()[: len(parts)]):
                    raise BadMedia(f"The frames of job {job_id!r} have expired; submit it again.")
            if not self._submitter.retry_job(job):
                raise _not_failed(job_id)

    def drop(self, job_id: str) -> None:
        """Forgets a job and its failure, but for its result, which expires by itself. Raises NotFound."""
        with server_errors(self._connection), self._connection.pipeline() as pipeline:
            forget_failure(pipeline, self._request(job_id))
            pipeline.execute()

    def _request(self, job_id: str) -> Job:
        request = self._connection.hget(keys.failed(job_id), "request")
        if request is None:
            raise _not_failed(job_id)
        return decode(Job, request)


def _not_failed(job_id: str) -> NotFound:
    return NotFound(f"There is no failed job {job_id!r}: it was retried or dropped, it expired, or it never failed.")
