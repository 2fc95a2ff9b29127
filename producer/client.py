"""The client: submits turns, waits for results, streams text, and reads conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.connection import ServerClock, connect, server_errors
from sailq.shared.errors import NotFound
from sailq.shared.jobs import Failure, GenerationOptions, IdFactory, Job, ModelCard, Priority, Result, Turn, parse
from sailq.shared.media.messages import Prepared, prepare
from sailq.shared.media.sources import kind_of
from sailq.shared.rqjob import queue_of, with_job
from sailq.shared.settings import Settings

from .replies import Chunk, Inbox, Patience, not_found, read_result
from .submission import Submitter
from .waiting import Waiter


@dataclass(frozen=True)
class JobHandle:
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
        """`redis_url` overrides that of `settings`, which come from the environment by default (see `Settings`)."""
        self.settings = settings or Settings()
        if redis_url is not None:
            self.settings = self.settings.model_copy(update={"redis_url": redis_url})
        self.connection = connect(self.settings.redis_url)
        self._clock = ServerClock(self.connection)
        self._ids = IdFactory()
        self._submitter = Submitter(self.connection, self.settings)
        self.inbox = Inbox(self._ids.mark, self.settings.result_ttl)
        self._cards: dict[str, ModelCard] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    # Jobs

    def new_id(self) -> str:
        """A new id for a job, for `submit`."""
        with server_errors(self.connection):
            return self._ids.new(self._clock.now())

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
        keep: bool | None = None,
        job: str | None = None,
    ) -> JobHandle:
        """Reads the media, uploads their frames and enqueues one turn.

        Args:
            messages: chat messages as `messages.prepare` takes them; media paths are relative to `base`.
            conversation: the conversation that this turn continues; a new one by default.
            model: the model's name; the settings' by default.
            options: `GenerationOptions`, or its fields.
            timeout: seconds from now until the job's deadline; the job then ends as `deadline`.
            priority: "high" goes ahead of all waiting jobs.
            stream: whether the text will be read as it comes.
            metadata: JSON-like; returned unchanged in the result.
            wait: seconds to wait for room if the queue is full.
            keep: whether the conversation keeps this turn's clips, so that later turns may ask about them; True by
                default if `conversation` is given.
            job: the job's id, a new one by default. A job that is submitted again with the same id runs only once.

        Raises BadMedia, BadRequest, TooLong or Unsupported for a turn that no worker could answer, and QueueFull.
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
                keep=keep,
                job=job,
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
        keep: bool | None = None,
        job: str | None = None,
    ) -> JobHandle:
        """Like `submit`, for messages whose media were already read."""
        with server_errors(self.connection):
            now = self._clock.now()
            job_id = job or self._ids.new(now)
            made = parse(
                Job,
                {
                    "id": job_id,
                    "conversation": conversation or job_id,
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
            if made.options.needs_scores and (card := self.card(made.model)) is not None and card.greedy_only:
                made.options.refuse_greedy_only()
            self.inbox.keep(self.connection)
            made = self._submitter.submit(
                made, prepared.blobs, inbox=self.inbox.name, now=now, wait=wait,
                keep=conversation is not None if keep is None else keep,
            )
        return JobHandle(made.id, made.conversation, made.turn)

    def upload(
        self, medium: Any, *, type: Literal["image", "video"] | None = None, model: str | None = None,
        base: Path | None = None, **options: Any,
    ) -> dict[str, Any]:
        """Reads an image or a video and stores its frames on the server for as long as a job may wait (`job_ttl`).

        Args:
            medium: an image or a video, in any form that `messages.prepare` takes.
            type: image or video; by default, found from its name, data URL or shape.
            model: the name of the model that will answer; the settings' by default.
            base: folder that a relative path starts from.
            options: the fields of `Options`: fps, max_pixels, ....

        Returns a part for the messages of `submit` or of RQ's `enqueue`.

        Raises what `submit` raises for media, and QueueFull if the server has no room for the frames.
        """
        kind = type or kind_of(medium)
        content = [{"type": kind, kind: medium, **options}]
        with server_errors(self.connection):
            card = self.card(model or self.settings.model)
            prepared = prepare([{"role": "user", "content": content}], base=base, card=card)
            self._submitter.upload(prepared.blobs, self._clock.now())
        return prepared.messages[0].content[0].model_dump()

    def result(self, job: str) -> Result | None:
        """The job's result, or None if the job has not ended. Raises NotFound for an unknown job."""
        with server_errors(self.connection), self.connection.pipeline(transaction=False) as pipeline:
            data, state = pipeline.get(keys.result(job)).hmget(keys.job(job), "status", "ended_at").execute()
        return read_result(job, data, state)

    def wait(self, job: str, timeout: float | None = None) -> Result:
        """Waits for the job's result. Raises WaitTimeout after `timeout` seconds, and NotFound."""
        for _, result in self.as_completed([job], timeout):
            return result
        raise AssertionError("as_completed yields once for each job")

    def as_completed(self, jobs: Iterable[str], timeout: float | None = None) -> Iterator[tuple[str, Result]]:
        """Yields (job, result) for each of `jobs` as it finishes. One connection waits for all of them.

        Raises WaitTimeout if no job finishes for `timeout` seconds, and NotFound.
        """
        waiter = Waiter(self.connection, self.inbox, jobs)
        patience = Patience(timeout)
        while waiter:
            for job, result in waiter.poll(patience.left()).ended:
                if isinstance(result, NotFound):
                    raise result
                patience.renew()
                yield job, result

    def stream(self, job: str, timeout: float | None = None) -> Iterator[Chunk]:
        """Yields the job's text as it comes, until the job has ended.

        Submit the job with `stream=True`: otherwise no text comes before the end. Raises WaitTimeout if nothing comes
        for `timeout` seconds, and NotFound.
        """
        waiter = Waiter(self.connection, self.inbox, [job], text=True)
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
        """Cancels a job. A waiting job ends at once. "running": its worker was notified and ends it soon.

        Raises NotFound for an unknown job.
        """
        with server_errors(self.connection):
            with self.connection.pipeline(transaction=False) as pipeline:
                pipeline.hgetall(keys.job(job)).exists(keys.result(job))
                fields, done = pipeline.execute()
            if done:
                return "finished"
            if not fields:
                raise not_found(job)
            now = self._clock.now()
            result = Result(
                job=job, conversation=job, turn=0, finish_reason="cancelled",
                error=Failure(code="cancelled", message="The job was cancelled before a worker took it."),
                attempt=0, finished_at=now,
            )
            state = self._submitter.cancel(with_job(result, queue_of(fields), fields))
        if state == "gone":
            raise not_found(job)
        return state

    # Conversations

    def conversations(self) -> list[str]:
        """Ids of the conversations that have not expired, the one with the newest turn first."""
        with server_errors(self.connection):
            return [name.decode() for name in self.connection.zrevrange(keys.CONVERSATIONS, 0, -1)]

    def history(self, conversation: str) -> list[Turn]:
        """The conversation's answered turns, in order; empty if there are none."""
        with server_errors(self.connection):
            return [decode(Turn, data) for data in self.connection.lrange(keys.turns(conversation), 0, -1)]

    def clear(self, conversation: str) -> None:
        """Deletes a conversation's history. Turn numbers continue, and unfinished turns still get their results."""
        with server_errors(self.connection):
            self._submitter.clear(conversation)

    # Models

    def models(self) -> list[ModelCard]:
        """The models that workers have announced in the last 30 days."""
        with server_errors(self.connection):
            names = sorted(name.decode() for name in self.connection.smembers(keys.MODELS))
            return [card for card in map(self.card, names) if card is not None]

    def card(self, name: str) -> ModelCard | None:
        """The card that a model's workers published, or None if no worker did."""
        if name not in self._cards:
            with server_errors(self.connection):
                data = self.connection.get(keys.model(name))
            if data is None:
                return None
            self._cards[name] = decode(ModelCard, data)
        return self._cards[name]
