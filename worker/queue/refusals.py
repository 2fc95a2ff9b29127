"""Writes error results for jobs that are not run: refused, given up, or ended by others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sailq.shared import keys
from sailq.shared.connection import ServerClock
from sailq.shared.errors import Cancelled, SailqError, Unsupported, quoted
from sailq.shared.jobs import DIED, HANDED_BACK, Attempt, Failure, Result
from sailq.shared.rqjob import queue_of, with_job

from .job_store import JobStore

_log = logging.getLogger("sailq.worker")


@dataclass(frozen=True)
class Identity:
    """A worker as results name it. `models`: the model names that it serves, the model's own name first."""

    worker: str
    device: str
    models: tuple[str, ...]


class Refusals:
    """Ends jobs that one worker does not run. Raises redis-py's errors."""

    def __init__(
        self, store: JobStore, clock: ServerClock, identity: Identity,
        on_result: Callable[[Result], None] = lambda result: None,
    ) -> None:
        """`on_result`: called with each result that was written."""
        self.identity, self.on_result = identity, on_result
        self._store, self._clock = store, clock

    def recover(self) -> bool:
        """Puts the jobs of dead workers back on their queues, and ends those that have no attempt left.

        Returns True if `rq suspend` keeps workers from taking jobs.
        """
        found = self._store.recover([keys.queue(model) for model in self.identity.models])
        for job in found.back:
            _log.warning("job %s goes back to its queue: its lease has expired", job)
        for job, execution in found.given_up:
            history = self._store.history(job)
            causes = [attempt.cause for attempt in history if attempt.cause != HANDED_BACK]
            self.refuse(job, execution, SailqError(
                f"Given up after {len(causes)} attempts; workers that died while they ran this job: "
                f"{causes.count(DIED)}."
            ), history)
        for job, what in found.refused:
            self.refuse(job, "", Unsupported(f"sailq does not support {what} jobs."))
        for job in found.cancelled:
            self.refuse(job, "", Cancelled("The job was cancelled."))
        return found.suspended

    def refuse(
        self, job_id: str, execution: str, error: SailqError, history: tuple[Attempt, ...] = (), *,
        queue: str = "", fields: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Writes an error result for a job. `execution`: see `JobStore.finish`. `fields`: RQ's hash, if known."""
        _log.warning("refused %s: %s: %s", quoted(job_id), error.code, quoted(str(error)))  # on a single line
        fields = self._store.fields(job_id) if fields is None else fields
        result = with_job(Result(
            job=job_id, conversation=job_id, turn=0,
            finish_reason="cancelled" if isinstance(error, Cancelled) else "error",
            error=Failure(code=error.code, message=str(error)), worker=self.identity.worker,
            device=self.identity.device, model=self.identity.models[0], finished_at=self._clock.now(),
            history=history, attempt=history[-1].attempt if history else 1,
        ), queue or queue_of(fields), fields)
        if result.model in self.identity.models:  # the request may use an alias: the result names the model itself
            result = result.model_copy(update={"model": self.identity.models[0]})
        if self._store.finish(job_id, execution, result):
            self.on_result(result)
