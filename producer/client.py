"""The client: submit turns, wait for results, read text as it comes, look at conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from ..shared import keys
from ..shared.codec import decode
from ..shared.connection import ServerClock, connect, server_errors
from ..shared.errors import NotFound
from ..shared.jobs import Failure, GenerationOptions, IdFactory, Job, ModelCard, Priority, Result, Turn, parse
from ..shared.lifecycle import Lifecycle
from ..shared.rqjob import Serializer
from ..shared.settings import Settings
from .admission import Admission
from .messages import Prepared, prepare
from .replies import Chunk, Patience, not_found, read_result
from .submission import Submitter
from .waiting import Waiter


@dataclass(frozen=True)
class Handle:
    """A submitted turn."""

    job: str
    conversation: str
    turn: int


class Client:
    """Talks to one server. Safe to use from several threads.

    >>> client = Client()
    >>> handle = client.submit([{"role": "user", "content": [
    ...     {"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "Describe the video."}]}])
    >>> client.wait(handle.job, timeout=60).text

    Every method raises ServerUnavailable when the server does not answer.
    """

    def __init__(self, redis_url: str | None = None, *, settings: Settings | None = None) -> None:
        """`redis_url` comes before `settings` (by default: the environment's, see `Settings`)."""
        self.settings = settings or Settings()
        if redis_url is not None:
            self.settings = self.settings.model_copy(update={"redis_url": redis_url})
        self.connection = connect(self.settings.redis_url)
        self._clock = ServerClock(self.connection)
        self._ids = IdFactory()
        self._submitter = Submitter(self.connection, self.settings)
        self._admission = Admission(self.connection, self.settings)
        self._lifecycle = Lifecycle(
            self.connection,
            result_ttl=self.settings.result_ttl,
            conversation_ttl=self.settings.conversation_ttl,
        )
        self._cards: dict[str, ModelCard] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    # Jobs

    def submit(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        conversation: str | None = None,
        model: str | None = None,
        options: GenerationOptions | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        priority: Priority = "normal",
        stream: bool = False,
        metadata: Mapping[str, Any] | None = None,
        base: Path | None = None,
        wait: float = 0.0,
    ) -> Handle:
        """Reads the media, uploads their frames and enqueues one turn.

        Args:
            messages: chat messages as `messages.prepare` takes them; media paths are relative to `base`.
            conversation: the conversation that this turn goes on with; a new one by default.
            model: the model's name; the settings' by default.
            options: `GenerationOptions`, or its fields.
            timeout: seconds from now after which the answer is of no use; the job then ends as `deadline`.
            priority: "high" goes ahead of all that waits.
            stream: whether the text will be read as it comes.
            metadata: JSON-like; comes back untouched in the result.
            wait: seconds to wait for room where the queue is full.

        Raises: BadMedia, BadRequest, TooLong or Unsupported for what no worker could answer, and QueueFull.
        """
        name = model or self.settings.model
        with server_errors(self.connection):
            prepared = prepare(messages, base=base, card=self.card(name))
            return self.submit_prepared(
                prepared,
                conversation=conversation,
                model=name,
                options=options,
                timeout=timeout,
                priority=priority,
                stream=stream,
                metadata=metadata,
                wait=wait,
            )

    def submit_prepared(
        self,
        prepared: Prepared,
        *,
        conversation: str | None = None,
        model: str | None = None,
        options: GenerationOptions | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        priority: Priority = "normal",
        stream: bool = False,
        metadata: Mapping[str, Any] | None = None,
        wait: float = 0.0,
    ) -> Handle:
        """`submit`, for messages whose media were read before."""
        with server_errors(self.connection):
            now = self._clock.now()
            job_id = self._ids.new(now)
            job = parse(
                Job,
                {
                    "id": job_id,
                    "conversation": conversation or f"c-{job_id}",
                    "model": model or self.settings.model,
                    "messages": prepared.messages,
                    "options": options if isinstance(options, GenerationOptions) else dict(options or {}),
                    "deadline": None if timeout is None else now + timeout,
                    "priority": priority,
                    "stream": stream,
                    "metadata": dict(metadata or {}),
                    "submitted_at": now,
                },
            )
            self._admission.admit(job.model, prepared.blobs, now, wait)
            self._submitter.put_blobs(prepared.blobs)
            job = self._submitter.put_job(job)
        return Handle(job.id, job.conversation, job.turn)

    def result(self, job: str) -> Result | None:
        """The job's result, or None while it has none. Raises NotFound for a job that is not there."""
        with server_errors(self.connection):
            data, exists = self.connection.pipeline().get(keys.result(job)).exists(keys.job(job)).execute()
        return read_result(job, data, exists)

    def wait(self, job: str, timeout: float | None = None) -> Result:
        """The job's result, once it has one. Raises WaitTimeout after `timeout` seconds, and NotFound."""
        for _, result in self.as_completed([job], timeout):
            return result
        raise AssertionError("as_completed yields once for each job")

    def as_completed(self, jobs: Iterable[str], timeout: float | None = None) -> Iterator[tuple[str, Result]]:
        """(job, result) of each of `jobs` as they finish; one connection waits for all of them.

        Raises WaitTimeout when nothing has finished for `timeout` seconds, and NotFound.
        """
        waiter = Waiter(self.connection, jobs)
        patience = Patience(timeout)
        while waiter:
            for job, result in waiter.poll(patience.left()).ended:
                if isinstance(result, NotFound):
                    raise result
                patience.renew()
                yield job, result

    def stream(self, job: str, timeout: float | None = None) -> Iterator[Chunk]:
        """The job's text as it comes; returns when the job has its result.

        Submit with `stream=True`, else nothing comes before the end. Raises WaitTimeout when nothing has
        come for `timeout` seconds, and NotFound.
        """
        waiter = Waiter(self.connection, [job])
        patience = Patience(timeout)
        while waiter:
            news = waiter.poll(patience.left())
            for chunk in news.chunks.get(job, []):
                yield chunk
                patience.renew()
            for _, result in news.ended:
                if isinstance(result, NotFound):
                    raise result

    def cancel(self, job: str) -> Literal["cancelled", "running", "finished"]:
        """Cancels a job: at once while it waits; "running" means its worker was told and ends it soon.

        Raises NotFound for a job that is not there.
        """
        with server_errors(self.connection):
            request = self.connection.hget(keys.job(job), "request")
            if request is None:
                self.result(job)  # raises NotFound if there is none
                return "finished"
            waiting = decode(Job, request)
            state = self._lifecycle.cancel(
                Result(
                    job=job,
                    conversation=waiting.conversation,
                    turn=waiting.turn,
                    finish_reason="cancelled",
                    error=Failure(code="cancelled", message="The job was cancelled before a worker took it."),
                    model=waiting.model,
                    attempt=0,
                    metadata=waiting.metadata,
                    finished_at=self._clock.now(),
                )
            )
            if state == "running":
                # Between two attempts RQ knows no worker to tell; the mark in the record is seen by the next.
                with suppress(NoSuchJobError, InvalidJobOperation):
                    send_stop_job_command(self.connection, job, serializer=Serializer)
        if state == "gone":
            raise not_found(job)
        return state

    # Conversations

    def conversations(self) -> list[str]:
        """Ids of the living conversations, the one last submitted to first."""
        with server_errors(self.connection):
            return [name.decode() for name in self.connection.zrevrange(keys.CONVERSATIONS, 0, -1)]

    def history(self, conversation: str) -> list[Turn]:
        """The conversation's answered turns, in order; empty if there are none."""
        with server_errors(self.connection):
            return [decode(Turn, data) for data in self.connection.lrange(keys.turns(conversation), 0, -1)]

    def clear(self, conversation: str) -> None:
        """Forgets what was said; the turns' numbers go on, and unfinished turns still get their results."""
        with server_errors(self.connection):
            self.connection.delete(keys.turns(conversation))

    # Models

    def models(self) -> list[ModelCard]:
        """The models that workers have announced in the last 30 days."""
        with server_errors(self.connection):
            names = sorted(name.decode() for name in self.connection.smembers(keys.MODELS))
            return [card for card in map(self.card, names) if card is not None]

    def card(self, name: str) -> ModelCard | None:
        """What the workers of a model say of it; None if none has announced it yet."""
        if name not in self._cards:
            with server_errors(self.connection):
                data = self.connection.get(keys.model(name))
            if data is None:
                return None
            self._cards[name] = decode(ModelCard, data)
        return self._cards[name]
