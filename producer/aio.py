"""The client for asyncio backends. All its waits share one connection and use no threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import redis.asyncio

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import NotFound, SailqError
from sailq.shared.jobs import GenerationOptions, ModelCard, Priority, Result, Turn
from sailq.shared.media.messages import Prepared
from sailq.shared.settings import Settings

from .async_pool import connection_pool
from .client import Client, JobHandle
from .replies import Chunk, Patience, read_result
from .stream_listener import Events, StreamListener

MAX_CONNECTIONS = 8
"""One connection waits for all jobs; the others carry single commands."""


class AsyncClient:
    """A `Client` for asyncio, with the same methods. Use it from one event loop.

    >>> async with AsyncClient() as client:
    ...     handle = await client.submit(messages, stream=True)
    ...     async for chunk in client.stream(handle.job):
    ...         print(chunk.text, end="")

    Media are read, and jobs submitted, in threads. Waiting and streaming run in the event loop. Every method raises
    ServerUnavailable when the server does not answer.
    """

    def __init__(self, redis_url: str | None = None, *, settings: Settings | None = None) -> None:
        """As for `Client`."""
        self._client = Client(redis_url, settings=settings)
        self.settings = self._client.settings
        self.connection = redis.asyncio.Redis(
            connection_pool=connection_pool(self.settings.redis_url, MAX_CONNECTIONS)
        )
        self._listener = StreamListener(self.connection, self._client.inbox)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._listener.close()
        await self.connection.connection_pool.disconnect()
        self._client.close()

    # Jobs

    async def new_id(self) -> str:
        """As `Client.new_id`."""
        return await asyncio.to_thread(self._client.new_id)

    async def submit(
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
        """As `Client.submit`."""
        return await asyncio.to_thread(
            self._client.submit,
            messages,
            conversation=conversation,
            model=model,
            options=options,
            timeout=timeout,
            priority=priority,
            stream=stream,
            metadata=metadata,
            base=base,
            wait=wait,
            keep=keep,
            job=job,
        )

    async def submit_prepared(
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
        """As `Client.submit_prepared`."""
        return await asyncio.to_thread(
            self._client.submit_prepared,
            prepared,
            conversation=conversation,
            model=model,
            options=options,
            timeout=timeout,
            priority=priority,
            stream=stream,
            metadata=metadata,
            wait=wait,
            keep=keep,
            job=job,
        )

    async def upload(
        self, medium: Any, *, type: Literal["image", "video"] | None = None, model: str | None = None,
        base: Path | None = None, **options: Any,
    ) -> dict[str, Any]:
        """As `Client.upload`."""
        return await asyncio.to_thread(self._client.upload, medium, type=type, model=model, base=base, **options)

    async def result(self, job: str) -> Result | None:
        """The job's result, or None if the job has not ended. Raises NotFound for an unknown job."""
        with server_errors(self.connection):
            async with self.connection.pipeline(transaction=False) as pipeline:
                data, state = await pipeline.get(keys.result(job)).hmget(keys.job(job), "status", "ended_at").execute()
        return read_result(job, data, state)

    async def wait(self, job: str, timeout: float | None = None) -> Result:
        """Waits for the job's result. Raises WaitTimeout after `timeout` seconds, and NotFound."""
        async for _, result in self.as_completed([job], timeout):
            return result
        raise AssertionError("as_completed yields once for each job")

    async def as_completed(
        self, jobs: Iterable[str], timeout: float | None = None
    ) -> AsyncIterator[tuple[str, Result]]:
        """Yields (job, result) for each of `jobs` as it finishes.

        Raises WaitTimeout if no job finishes for `timeout` seconds, and NotFound.
        """
        waiting = set(jobs)
        patience = Patience(timeout)
        with self._listener.follow(waiting) as events:
            while waiting:
                job, news = await _next(events, patience)
                if isinstance(news, SailqError):
                    raise news
                if news is None:
                    waiting.remove(job)
                    result = await self.result(job)
                    if result is None:
                        raise NotFound(f"Job {job!r} ended, but its result expired.")
                    patience.renew()
                    yield job, result

    async def stream(self, job: str, timeout: float | None = None) -> AsyncGenerator[Chunk, None]:
        """Yields the job's text as it comes, until the job has ended.

        Submit the job with `stream=True`: otherwise no text comes before the end. Raises WaitTimeout if nothing comes
        for `timeout` seconds, and NotFound.
        """
        patience = Patience(timeout)
        with self._listener.follow([job]) as events:
            while True:
                _, news = await _next(events, patience)
                if isinstance(news, SailqError):
                    raise news
                if news is None:
                    return
                for chunk in news:
                    yield chunk
                patience.renew()

    async def cancel(self, job: str) -> Literal["cancelled", "running", "finished"]:
        """As `Client.cancel`."""
        return await asyncio.to_thread(self._client.cancel, job)

    # Conversations and models, as in `Client`.

    async def conversations(self) -> list[str]:
        return await asyncio.to_thread(self._client.conversations)

    async def history(self, conversation: str) -> list[Turn]:
        return await asyncio.to_thread(self._client.history, conversation)

    async def clear(self, conversation: str) -> None:
        await asyncio.to_thread(self._client.clear, conversation)

    async def models(self) -> list[ModelCard]:
        return await asyncio.to_thread(self._client.models)

    async def card(self, name: str) -> ModelCard | None:
        return await asyncio.to_thread(self._client.card, name)


async def _next(events: Events, patience: Patience) -> tuple[str, list[Chunk] | SailqError | None]:
    getting = asyncio.ensure_future(events.get())
    try:
        while not getting.done():  # `asyncio.wait_for` could lose an event that arrives just before the timeout
            await asyncio.wait({getting}, timeout=patience.left())
        return getting.result()
    finally:
        getting.cancel()
