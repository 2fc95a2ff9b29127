"""RQ's side of a worker process: one loop in the main thread, one thread for each execution.

Stock RQ workers fork, or run one job at a time in-process; a model that lives on a TPU allows neither. This
one claims a job only when a place is free, runs each execution in a thread of its own, and renews all
leases from one beat thread. A worker that dies leaves leases that expire in `LEASE_SECONDS`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import redis
from rq.command import parse_payload
from rq.exceptions import AbandonedJobError, DeserializationError, StopRequested
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty
from rq.utils import now as utcnow
from rq.worker.base import BaseWorker, WorkerStatus

from ..shared import keys
from ..shared.connection import OUTAGES, ServerClock
from ..shared.errors import BadRequest, SailqError, Unsupported
from ..shared.rqjob import Serializer
from .execution import Executor, HandedBack
from .leases import LeasedJob, Leases
from .maintenance import LOOK_SECONDS, Maintenance
from .queues import ServedQueue

LEASE_SECONDS = 5
BEAT_SECONDS = 2.0
_IDLE_BEATS = 4
"""A worker without jobs has no leases to renew, and beats only so often that it is seen to live."""
RECORD_SECONDS = int(BEAT_SECONDS * _IDLE_BEATS * 2.5)
"""A worker whose record is older than this is gone."""
_DEQUEUE_SECONDS = 2
_OUTAGE_SECONDS = 1.0
_DRAIN_LOOK_SECONDS = 0.05

_log = logging.getLogger("sailq.worker")


class NoDeathPenalty(BaseDeathPenalty):
    """RQ's timers cannot interrupt a device call; deadlines are the scheduler's."""

    def setup_death_penalty(self) -> None: ...

    def cancel_death_penalty(self) -> None: ...


class Consumer(BaseWorker):
    """An RQ worker with `places` executions at a time.

    `places` is the scheduler's slots plus a short look-ahead, so that the host work of the next jobs is
    done while the device is busy, and no more is taken from other boxes than that.
    """

    death_penalty_class = NoDeathPenalty
    job_class = LeasedJob
    log_result_lifespan = False
    max_connection_wait_time = 5.0  # RQ's minute would be a minute without work after an outage

    def __init__(
        self, queues: Sequence[str], executor: Executor, *, connection: redis.Redis, name: str, places: int,
        drain_seconds: float, announce: Callable[[redis.client.Pipeline], None],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`queues`: at the last of them it waits; see `ServedQueue`. `announce` adds the worker's own record to the
        pipeline of each beat. `drain_seconds`: what running jobs have to finish in once the worker is told to stop.
        `ready` is called when it begins to take jobs."""
        Leases.clock = ServerClock(connection)
        super().__init__(
            [ServedQueue(queue, connection=connection, job_class=LeasedJob, serializer=Serializer) for queue in queues],
            name=name, connection=connection, queue_class=ServedQueue, job_class=LeasedJob, serializer=Serializer,
            worker_ttl=_DEQUEUE_SECONDS + 15,  # RQ waits for jobs 15 s less than this
            maintenance_interval=LOOK_SECONDS, exception_handlers=[self._on_failure],
            log_job_description=False,
        )
        LeasedJob.registered = executor.run
        self._maintenance = [Maintenance(queue, name, self._exc_handlers, executor.refuse) for queue in self.queues]
        self._executor = executor
        self._announce, self._ready = announce, ready
        self._held_at: WeakKeyDictionary[Execution, float] = WeakKeyDictionary()
        self._suspension_asked_at = float("-inf")
        self._free = threading.Semaphore(places)
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="sailq-job")
        self._closing = threading.Lock()
        self._stopped = threading.Event()
        self._drain_seconds = drain_seconds
        self._hurry = threading.Event()
        self._beat_thread = threading.Thread(target=self._beat_until_stopped, name="sailq-beat", daemon=True)

    # The loop: wait for a place, then for a job, then give the job a thread.

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        self.register_birth()
        self.subscribe()
        self._beat()
        self._beat_thread.start()
        self._ready()

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RQJob, Queue] | None:
        while not self._free.acquire(timeout=0.5):
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()
        while True:
            try:
                taken = self._dequeue(timeout, max_idle_time)
                if taken is None or not self._stop_requested:
                    return taken
                self._put_back(*taken)
                raise StopRequested
            except redis.RedisError as error:
                # RQ's loop waits for the server only where it waits for jobs, and ends the worker elsewhere.
                _log.warning("the server fails: %s", error)
                if self._stop_requested:
                    raise StopRequested from None
                time.sleep(_OUTAGE_SECONDS)

    def _put_back(self, job: RQJob, queue: Queue) -> None:
        """What the server gave to a wait that began before the worker was told to stop goes to the queue's front."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.lpush(queue.key, job.id)
            pipeline.execute()

    def _dequeue(self, timeout: int | None, max_idle_time: int | None) -> tuple[RQJob, Queue] | None:
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except redis.RedisError:
                raise  # RQ names a job here, too, though nothing is wrong with it
            except Exception as error:
                # RQ names the job when its record cannot even be read.
                if hasattr(error, "job_id") and hasattr(error, "queue"):
                    self.connection.lrem(error.queue.intermediate_queue_key, 1, error.job_id)
                    self._executor.refuse(error.job_id, BadRequest("This job's record is not one that RQ wrote."))
                elif isinstance(error, UnicodeDecodeError):
                    self._drop_unnameable()
                else:
                    raise

    def _drop_unnameable(self) -> None:
        """Removes what was pushed on the queue and is no text, so that no job can ever have that id."""
        for queue in self.queues:
            taken = queue.intermediate_queue_key
            for entry in self.connection.lrange(taken, 0, -1):
                try:
                    entry.decode()
                except UnicodeDecodeError:
                    _log.warning("dropped %r from the queue: no job has such an id", entry[:64])
                    self.connection.lrem(taken, 1, entry)

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        job.origin = queue.name  # its record may name any, and its lease would be where nobody looks
        known, now = set(self.executions), time.monotonic()
        try:
            execution = self.prepare_execution(job)
        except redis.RedisError as error:
            # RQ's maintenance finds it among the taken jobs that nobody runs, unless its lease were renewed.
            _log.warning("job %s was taken, but not started: %s", job.id, error)
            for unused in set(self.executions) - known:
                self.executions.pop(unused, None)
            self._free.release()
            return
        self._held_at[execution] = now
        self._threads.submit(self._perform, job, queue, execution)

    def _perform(self, job: RQJob, queue: Queue, execution: Execution) -> None:
        try:
            self.perform_job(job, queue, execution)
        except Exception as error:
            outage = isinstance(error, redis.RedisError)  # one line: its traceback says nothing of the job
            _log.error("job %s: its end was not recorded, and its lease will expire: %s", job.id, error,
                       exc_info=not outage)
            self.executions.pop(execution.id, None)
        finally:
            self._free.release()

    # RQ would close a job whatever became of it. One that was given to another worker, while this one was stopped or
    # cut off, stays open until that one ends: for the next turn, and for the next worker if that one dies.

    def _finalize_success(self, job: RQJob, queue: Queue, execution: Execution, return_value: Any) -> None:
        if self._still_has(execution):
            super()._finalize_success(job, queue, execution, return_value)

    def _finalize_failure(self, job: RQJob, queue: Queue, execution: Execution, exc_info: Any) -> None:
        if self._still_has(execution):
            super()._finalize_failure(job, queue, execution, exc_info)

    def _still_has(self, execution: Execution) -> bool:
        if self._surely_has(execution, time.monotonic()):
            return True
        leases = execution.job.started_job_registry
        if self.connection.zscore(leases.key, execution.composite_key) is not None:
            return True
        _log.warning("job %s: its lease has ended, and its end is another attempt's", execution.job_id)
        self.executions.pop(execution.id, None)
        return False

    def _surely_has(self, execution: Execution, now: float) -> bool:
        """Whether its lease cannot have ended, by this machine's own clock. Once in doubt, always: a beat renews no
        lease that is gone."""
        return now - self._held_at.get(execution, float("-inf")) < LEASE_SECONDS - 1

    def prepare_job_execution(self, job: RQJob, remove_from_intermediate_queue: bool = False) -> None:
        """RQ leaves the job among the taken ones where a worker has several queues."""
        super().prepare_job_execution(job, remove_from_intermediate_queue=True)

    # RQ closes a job with one connection that watches and a second that reads. All threads share
    # MAX_CONNECTIONS: two of them, each holding its first and waiting for its second, would wait for ever.

    def handle_job_success(self, *args: Any, **kwargs: Any) -> None:
        with self._closing:
            super().handle_job_success(*args, **kwargs)

    def handle_job_failure(self, *args: Any, **kwargs: Any) -> None:
        with self._closing:
            super().handle_job_failure(*args, **kwargs)

    def procline(self, message: str) -> None:
        """Worker threads must not rename the process."""

    def heartbeat(self, timeout: int | None = None, pipeline: redis.client.Pipeline | None = None) -> None:
        """RQ's loop beats here several times a job; the beat thread alone does it."""

    def set_state(self, state: str, pipeline: redis.client.Pipeline | None = None) -> None:
        """RQ's loop tells the server twice a job; the beat does."""
        self._state = state

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:
        return LEASE_SECONDS

    # The beat: leases, the worker's record, marks of cancelled jobs.

    def _beat(self) -> None:
        executions, now = list(self.executions.values()), time.monotonic()
        running = self._executor.running()
        with self.connection.pipeline(transaction=False) as pipeline:
            BaseWorker.heartbeat(self, pipeline=pipeline)
            pipeline.hset(self.key, "state", WorkerStatus.BUSY if executions else self.get_state())
            for execution in executions:
                execution.heartbeat(execution.job.started_job_registry, LEASE_SECONDS, pipeline)
            self._announce(pipeline)
            for job_id in running:
                pipeline.hexists(keys.job(job_id), "cancel")
            replies = pipeline.execute()
        for execution in executions:
            if self._surely_has(execution, now):
                self._held_at[execution] = now
        marks = replies[len(replies) - len(running):]
        for job_id, marked in zip(running, marks, strict=True):
            if marked:
                self._executor.cancel(job_id)

    def _beat_until_stopped(self) -> None:
        for beat in count():
            if self._stopped.wait(BEAT_SECONDS):
                return
            if beat % _IDLE_BEATS and not self.executions:
                continue  # hundreds of idle boxes share one server
            try:
                self._beat()
            except redis.RedisError as error:
                _log.warning("beat failed: %s", error)
            except Exception:  # without beats every lease expires, and jobs are run over and over
                _log.exception("beat failed")

    def handle_payload(self, message: dict[str, Any]) -> None:
        """RQ's stop command, which a cancelling producer sends, is heard at once, not at the next beat; RQ itself looks
        for the job among a worker's executions no further than the first. Of its others, none is a producer's to give:
        one of them shuts the worker down."""
        try:
            payload = parse_payload(message)
            if payload["command"] == "stop-job":
                self._executor.cancel(payload["job_id"])
            else:
                _log.warning("ignored the command %.100r: a worker takes stop-job alone", payload["command"])
        except Exception as error:  # anybody may publish anything, and this thread is the only one to hear it
            _log.warning("ignored a command that is none of RQ's: %r", error)

    def _pubsub_exception_handler(self, error: Exception, *_: Any) -> None:
        """RQ's own ends the thread at the first timeout."""
        _log.warning("commands are not heard: %s", error)
        self._stopped.wait(_OUTAGE_SECONDS)

    def check_for_suspension(self, burst: bool) -> None:
        """RQ asks before each job; `rq suspend` may take effect some seconds later."""
        if time.monotonic() - self._suspension_asked_at < BEAT_SECONDS:
            return
        self._suspension_asked_at = time.monotonic()
        with suppress(redis.RedisError):  # the dequeuing that follows waits for the server
            super().check_for_suspension(burst)

    # Maintenance: RQ's, by one worker of the fleet at a time.

    def run_maintenance_tasks(self) -> None:
        try:
            super().run_maintenance_tasks()
        except redis.RedisError as error:
            _log.warning("maintenance failed: %s", error)

    def clean_registries(self) -> None:
        for maintenance in self._maintenance:
            try:
                maintenance.run()
            except OUTAGES:
                raise
            except Exception:
                _log.exception("maintenance met something in RQ's registries that RQ did not write")
        self.last_cleaned_at = utcnow()  # type: ignore[assignment]  # RQ annotates it as None

    def clean_group_registries(self) -> None:
        """sailq uses no RQ groups."""

    # Failures that no result speaks of yet.

    def _on_failure(self, job: RQJob, kind: type[BaseException], error: BaseException, *_: Any) -> bool:
        """Called by RQ with what `perform_job` raised, and for each job whose worker died."""
        if isinstance(error, AbandonedJobError):
            job.enqueue_at_front_on_retry = True  # it has waited for its turn
            if not self._may_be_taken(job):
                self._executor.give_up(job.id)
        elif isinstance(error, DeserializationError):
            self._refuse(job, BadRequest("This job's data is not msgpack of sailq's form."))
        elif isinstance(error, SailqError):
            self._refuse(job, error)
        elif not self._may_be_taken(job):
            self._executor.refuse(job.id, SailqError(f"The worker failed on this job: {type(error).__name__}."))
        return True

    def _refuse(self, job: RQJob, error: SailqError) -> None:
        job.retries_left = 0  # it would fail the same way again
        self._executor.refuse(job.id, error)

    def _may_be_taken(self, job: RQJob) -> bool:
        """Also tells RQ, which counts each time that the job was taken, though it may not have begun, or had ended."""
        again = self._executor.may_be_taken(job.id)
        if again is not None:
            job.retries_left = int(again)
        return bool(job.retries_left)

    def handle_exception(self, job: RQJob, *exc_info: Any) -> None:
        if isinstance(exc_info[1], (BadRequest, Unsupported, DeserializationError)):
            self._on_failure(job, *exc_info)  # logs a line; RQ, a traceback with the job's own words in it
            return
        if isinstance(exc_info[1], redis.RedisError):
            _log.warning("job %s: the server failed: %s", job.id, exc_info[1])
            self._on_failure(job, *exc_info)
            return
        if not isinstance(exc_info[1], HandedBack):
            super().handle_exception(job, *exc_info)
            return
        _log.info("job %s goes back to its queue", job.id)
        job.retries_left = (job.retries_left or 0) + 1  # this attempt does not count: nothing is wrong with the job
        job.enqueue_at_front_on_retry = True

    # The end: no new job; the running ones finish, or go back to the queue.

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGTERM, self.request_stop)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._hurry.is_set():
            _log.warning("third signal: leaving as it is; running jobs go to other workers when their leases end")
            logging.shutdown()
            os._exit(1)  # job threads may be in a device call that nothing can interrupt
        if self._stop_requested:
            _log.warning("second signal: %d running jobs go back to their queue", len(self.executions))
            self._hurry.set()
            return
        _log.warning(
            "stopping: %d running jobs have %g s to finish; signal again to hand them back now",
            len(self.executions), self._drain_seconds,
        )
        self._stop_requested = True

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ asks this at every turn of its loops, the idle one too, which ignores `_stop_requested`."""
        if self._stop_requested:
            raise StopRequested
        return bool(super().should_run_maintenance_tasks)

    def teardown(self) -> None:
        until = time.monotonic() + self._drain_seconds
        while self.executions and time.monotonic() < until:
            if self._hurry.wait(_DRAIN_LOOK_SECONDS):
                break
        self._executor.hand_back()
        self._threads.shutdown(wait=True)
        self._stopped.set()
        self._beat_thread.join()
        try:
            self.register_death()
            self.unsubscribe()
        except redis.RedisError as error:
            _log.warning("left without telling the server: %s", error)

    @property
    def stop_requested(self) -> bool:
        """Whether the loop ended because it was told to."""
        return bool(self._stop_requested)
