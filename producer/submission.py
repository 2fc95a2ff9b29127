"""The state changes of jobs that a producer makes: it submits and cancels them."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

import redis

from sailq.shared import keys
from sailq.shared.codec import encode
from sailq.shared.errors import NotReplicated, QueueFull
from sailq.shared.jobs import Job, Result, media_parts
from sailq.shared.rqjob import RESULT_TTL, at, record, rq_result
from sailq.shared.scripts import PRODUCER, REPLICATED_SECONDS, call_replicated, script
from sailq.shared.settings import Settings

_LONGEST_PAUSE = 1.0


class Submitter:
    """Submits and cancels jobs. Raises redis-py's errors."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._settings = settings
        self._scripts = {name: script(connection, name) for name in PRODUCER}
        self._connection, self._known_queues = connection, set[str]()

    def submit(
        self, job: Job, clips: Mapping[str, bytes], *, inbox: str, keep: bool, now: float, wait: float = 0.0
    ) -> Job:
        """Enqueues `job` as its conversation's next turn and returns it with that turn's number.

        A job with an existing id is not changed. A turn waits for the unfinished turns before it.

        Args:
            clips: encoded frames by their digests. The server keeps them, and clips that were uploaded before, for as
                long as the job needs them.
            inbox: the name of the inbox that is notified when the job has ended.
            keep: whether the conversation keeps the clips, for its later turns.
            now: the server's time, seconds since the epoch.
            wait: seconds to wait for `sync_replicas` replicas, and for room within `max_queued` and `max_blob_bytes`.

        Raises QueueFull, NotReplicated, and CodecError for a job that is too large.
        """
        settings, queue = self._settings, keys.queue(job.model)
        digests = dict.fromkeys(part.blob for part in media_parts(job.messages))
        fields: dict[str, Any] = {
            **record(job, ttl=settings.job_ttl), "conversation": job.conversation, "inbox": inbox,
            **({"clips": " ".join(digests)} if digests else {}), **({"keep": 1} if keep else {}),
            **({"stream": 1} if job.stream else {}),
        }
        arguments = [
            job.id, queue, job.conversation, int(job.priority == "high"), now, settings.job_ttl, settings.blob_ttl,
            settings.conversation_ttl, settings.max_queued, settings.max_blob_bytes, len(fields),
            *(part for field in fields.items() for part in field),
            *(part for digest in digests for part in (digest, clips.get(digest, b""))),
        ]
        if queue not in self._known_queues:  # RQ's own list of queues
            self._connection.sadd("rq:queues", keys.waiting(queue))
            self._known_queues.add(queue)
        until, pause = time.monotonic() + wait, 0.05
        while True:
            (state, count), replicas = call_replicated(
                self._scripts["submit"], [keys.job(job.id), keys.result(job.id), keys.waiting(queue)], arguments,
                settings.sync_replicas, self._connection,
            )
            written = state in {b"queued", b"known"}
            if written and replicas >= settings.sync_replicas:
                return job.model_copy(update={"turn": int(count)})
            left = until - time.monotonic()
            if left <= 0 and written:
                raise NotReplicated(
                    f"Job {job.id!r} was submitted, but {replicas} of {settings.sync_replicas} replicas confirmed it "
                    f"within {REPLICATED_SECONDS:g} s: submit it again with the same id.", job.id,
                )
            if left <= 0:
                raise self._full(state, count, job.model)
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # thousands of callers may wait for the same room
            pause = min(2 * pause, _LONGEST_PAUSE)

    def upload(self, clips: Mapping[str, bytes], now: float) -> None:
        """Stores clips on the server for later jobs, for as long as a job may wait. Raises QueueFull."""
        settings = self._settings
        state, count = self._scripts["hold"](args=[
            f"upload:{secrets.token_hex(8)}", now, settings.job_ttl, settings.max_blob_bytes,
            *(part for clip in clips.items() for part in clip),
        ])
        if state == b"bytes":
            raise self._full(state, count, "")

    def cancel(self, result: Result) -> Literal["finished", "gone", "running", "cancelled"]:
        """Ends a waiting job with `result`, or notifies the worker of a running one."""
        state: bytes = self._scripts["cancel"](
            keys=[keys.job(result.job), keys.result(result.job)],
            args=[result.job, encode(result), self._settings.result_ttl, self._settings.stream_ttl,
                  result.finished_at, at(result.finished_at), RESULT_TTL, *rq_result(result)],
        )
        return state.decode()  # type: ignore[return-value]

    def clear(self, conversation: str) -> None:
        """Deletes a conversation's history."""
        self._scripts["clear"](
            keys=[keys.turns(conversation), keys.conversation_clips(conversation)], args=[conversation]
        )

    def _full(self, state: bytes, count: int, model: str) -> QueueFull:
        settings = self._settings
        if state == b"jobs":
            return QueueFull(f"{count} jobs already wait for {model}; the limit is {settings.max_queued}.")
        return QueueFull(
            f"The clips on the server take {count >> 20} MB; the limit is {settings.max_blob_bytes >> 20} MB."
        )
