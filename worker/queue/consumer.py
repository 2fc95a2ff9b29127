"""The main loop of a worker process: wait for a free place, claim a job, and run the job on a thread.

A claim takes a job and its lease in one step, and one thread renews all leases. When a worker dies, its leases end
after `LEASE_SECONDS`, and another worker puts its jobs back on their queues. RQ's tools show workers and jobs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import FrameType
from typing import Any

import redis
from rq import worker_registration
from rq.utils import now
from rq.worker import SimpleWorker

from sailq.shared import keys
from sailq.shared.connection import ServerClock
from sailq.shared.rqjob import Serializer
from sailq.shared.scripts import write

from .job_runner import JobRunner
from .job_store import Claim, JobStore, new_execution
from .refusals import Refusals

BEAT_SECONDS = 1.0
"""Leases are renewed at each beat. Every second beat looks for the jobs of dead workers."""
_RECORD_BEATS = 8
"""The worker's record is renewed at every eighth beat: it only shows that the worker is alive."""
RECORD_SECONDS = int(BEAT_SECONDS * _RECORD_BEATS * 2.5)
"""A worker whose record is older than this is gone."""
_BELL_SECONDS = 2
"""Seconds that an idle worker waits for its queues' bells before it polls: RQ's own `enqueue` rings no bell."""
_OUTAGE_SECONDS = 1.0
_DRAIN_LOOK_SECONDS = 0.05

_log = logging.getLogger("sailq.worker")


class Consumer:
    """Takes jobs for `places` executions at a time: the scheduler's slots plus a short look-ahead.

    The look-ahead lets the host prepare the next jobs while the device is busy, and leaves all others to other boxes.
    """

    def __init__(
        self, queues: Sequence[str], job_runner: JobRunner, store: JobStore, refusals: Refusals, *,
        connection: redis.Redis, waiting: redis.Redis, name: str, places: int, drain_seconds: float,
        announce: Callable[[redis.client.Pipeline], None], ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`waiting`: the connection that waits and claims. `announce` adds the worker's own record to a pipeline.
        `drain_seconds`: seconds that running jobs get after SIGTERM. `ready` is called when it begins to take jobs."""
        self._queues, self._job_runner, self._store, self._connection = queues, job_runner, store, connection
        self._waiting, self._refusals = waiting, refusals
        self._announce, self._ready, self._drain_seconds = announce, ready, drain_seconds
        self._clock = ServerClock(connection)
        self._registered = SimpleWorker(
            list(queues), name=name, connection=connection, serializer=Serializer,
            worker_ttl=15,  # RQ sets the read timeout 4 s below it; the default is 7 minutes
        )
        self._free = threading.Semaphore(places)
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="sailq-job")
        self._claims: dict[str, Claim] = {}
        self._empty = False  # whether the last claim left the queues empty
        self._suspended = False
        self._stopping, self._hurry, self._ended = threading.Event(), threading.Event(), threading.Event()

    @property
    def stop_requested(self) -> bool:
        return self._stopping.is_set()

    def work(self) -> None:
        """Serves the queues until SIGTERM or SIGINT, then lets the running jobs finish or hands them back."""
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, self._on_signal)
        self._registered.birth_date = now()
        self._beat(record=True)
        self._suspended = self._refusals.recover()
        beats = threading.Thread(target=self._beat_until_ended, name="sailq-beat", daemon=True)
        beats.start()
        commands = self._listen()
        self._ready()
        while not self._stopping.is_set():
            if not self._free.acquire(timeout=0.5):
                continue
            claim = self._next()
            if claim is None:
                self._free.release()
                continue
            self._claims[claim.lease] = claim
            self._threads.submit(self._perform, claim)
        self._drain()
        self._ended.set()
        beats.join()
        commands.stop()
        try:
            self._registered.register_death()
        except redis.RedisError as error:
            _log.warning("the worker's registration was not removed from the server: %s", error)

    def _next(self) -> Claim | None:
        """Claims a job, or returns None after a short wait."""
        execution = new_execution()
        for trial in count():
            try:
                if self._suspended:
                    self._stopping.wait(_BELL_SECONDS)
                    return None
                if self._empty and not trial:
                    self._waiting.blpop([keys.bell(queue) for queue in self._queues], timeout=_BELL_SECONDS)
                    if self._stopping.is_set():
                        return None
                claim = self._store.claim(
                    self._queues, execution, self._clock.now(), again=trial > 0, idle=self._empty
                )
                self._empty = claim is None or not claim.more
                return claim
            except redis.RedisError as error:
                _log.warning("no job was claimed, because the server failed: %s", error)
                if self._stopping.wait(_OUTAGE_SECONDS):
                    return None
        raise AssertionError

    def _perform(self, claim: Claim) -> None:
        try:
            self._job_runner.run(claim)
        except redis.RedisError as error:
            _log.error("job %s: its result was not written; its lease will expire: %s", claim.job, error)
        except Exception:
            _log.exception("job %s: its result was not written; its lease will expire", claim.job)
        finally:
            self._claims.pop(claim.lease, None)
            self._free.release()

    # The heartbeat renews leases and the worker's record, and recovers the jobs of dead workers.

    def _beat(self, *, record: bool) -> None:
        claims = list(self._claims.values())
        if claims:
            lost, ended = self._store.renew(claims)
            for claim in claims:
                if claim.lease in lost | ended:  # lost: another attempt owns the job, or will
                    self._job_runner.cancel(claim.job, claim.execution)
        if record:
            with self._connection.pipeline() as pipeline:
                register(self._registered, "busy" if claims else "idle", pipeline)
                self._announce(pipeline)
                write(pipeline, self._connection)

    def _beat_until_ended(self) -> None:
        for beat in count(1):
            if self._ended.wait(BEAT_SECONDS):
                return
            try:
                self._beat(record=beat % _RECORD_BEATS == 0)
                if beat % 2:
                    self._suspended = self._refusals.recover()
            except redis.RedisError as error:
                _log.warning("the heartbeat failed: %s", error)
            except Exception:  # the heartbeat must go on, or all leases expire and jobs run again and again
                _log.exception("the heartbeat failed")

    # Commands. RQ's stop-job, which a producer's `cancel` sends, acts at once. The heartbeat sees a missed one.

    def _listen(self) -> Any:
        commands = self._connection.pubsub()
        commands.subscribe(**{self._registered.pubsub_channel_name: self._on_command})
        return commands.run_in_thread(sleep_time=60, daemon=True, exception_handler=self._on_deafness)

    def _on_command(self, message: dict[str, Any]) -> None:
        try:
            command = json.loads(message["data"])
            if command["command"] == "stop-job":
                self._job_runner.cancel(command["job_id"])
            else:  # producers may publish, but must not shut a worker down
                _log.warning("ignored the command %.100r: a worker obeys only stop-job", command["command"])
        except Exception as error:  # other programs may publish anything, and an error would end this thread
            _log.warning("ignored a malformed command: %r", error)

    def _on_deafness(self, error: Exception, *_: Any) -> None:
        _log.warning("commands cannot be received: %s", error)
        self._ended.wait(_OUTAGE_SECONDS)

    # Shutdown: no new jobs; the running ones finish or go back to the queue.

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._hurry.is_set():
            _log.warning("third signal: exiting now; running jobs go to other workers when their leases expire")
            logging.shutdown()
            os._exit(1)  # job threads may be in a device call that nothing can interrupt
        if self._stopping.is_set():
            _log.warning("second signal: %d running jobs go back to their queue", len(self._claims))
            self._hurry.set()
            return
        _log.warning(
            "stopping: %d running jobs have %g s to finish; signal again to hand them back now",
            len(self._claims), self._drain_seconds,
        )
        self._stopping.set()

    def _drain(self) -> None:
        until = time.monotonic() + self._drain_seconds
        while self._claims and time.monotonic() < until:
            if self._hurry.wait(_DRAIN_LOOK_SECONDS):
                break
        self._job_runner.hand_back()
        self._threads.shutdown(wait=True)


def register(worker: SimpleWorker, state: str, pipeline: redis.client.Pipeline) -> None:
    """Writes a worker's record, which RQ's tools show. Each call writes all of it: the server may have been flushed."""
    worker.last_heartbeat = now()
    pipeline.hset(worker.key, mapping={**worker.serialize(), "state": state})
    pipeline.expire(worker.key, RECORD_SECONDS)
    worker_registration.register(worker, pipeline)
