"""Answers chat requests: admission, media, submission, and the answer, whole or as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from secrets import randbelow
from typing import Any, Literal

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import NotFound, SailqError, ServerUnavailable
from sailq.shared.jobs import ModelCard, Result
from sailq.shared.media.messages import Prepared, prepare

from ..aio import AsyncClient
from ..captioning.readers import READERS, Readers
from ..client import JobHandle
from ..media_fetching import MediaFetcher
from ..openai_api.errors import ApiError, api_error, of_result, unknown_model
from ..openai_api.messages import addresses, media_of, put_fetched
from ..openai_api.requests import ChatRequest, Question, read_question
from ..openai_api.responses import Completion
from .keys import Caller
from .limits import Limits
from .metrics import Metrics

_READ_SECONDS = 60.0
"""Processor time to read the media of one request."""
_OUTAGE_SECONDS = 60.0
"""How long requests wait for a server that is away: longer than a failover, or a restart that loads its data."""
_PAUSE_SECONDS = 0.5
_Kind = Literal["thought", "text"]
_log = logging.getLogger("sailq.gateway")


@dataclass(frozen=True)
class Ticket:
    """A submitted request.

    Attributes:
        outlives: whether the job goes on if the client disconnects, because it may ask again.
    """

    job: str
    caller: Caller
    request: ChatRequest
    outlives: bool

    @property
    def completion(self) -> Completion:
        asked = self.request
        return Completion(self.job, asked.model, asked.conversation, with_usage=asked.includes_usage)


class Chat:
    """The way of a chat request through the queue. Every method raises ApiError, and no other error of sailq's."""

    def __init__(self, client: AsyncClient, fetcher: MediaFetcher, metrics: Metrics) -> None:
        self.client, self._fetcher, self._metrics = client, fetcher, metrics
        self._limits = Limits(client.connection)
        self._readers = Readers(max_seconds=_READ_SECONDS)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="sailq-read")
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for cancellations that are under way, and ends the children that read media."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._readers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self, request: ChatRequest, caller: Caller, idempotency_key: str | None = None, *,
        prepared: Prepared | None = None,
    ) -> Ticket:
        """Submits a request's job. A request that was sent before with this `idempotency_key` has the same job.

        `prepared`: what to ask in place of the request's messages, for media that were read before.
        """
        with api_errors():
            card = await self._card(request.model)
            arguments = caller.arguments(request.arguments)
            question = _seeded(read_question(request, card), request)
            job, known = await self._job(caller, idempotency_key, request)
            ticket = Ticket(job, caller, request, outlives=idempotency_key is not None)
            if known and await self._is_submitted(job):
                return ticket
            await self._limits.admit(caller, job)
            submitting: asyncio.Future[JobHandle] | None = None
            try:
                if prepared is None:
                    prepared = await self._prepared(question.messages, card)
                submitting = asyncio.ensure_future(self.client.submit_prepared(
                    prepared, model=request.model, options=question.options, stream=bool(request.stream), job=job,
                    **arguments,
                ))
                await asyncio.shield(submitting)  # it is in a thread, which cannot be stopped
            except BaseException:
                self._in_background(self._withdraw(ticket, submitting))
                raise
            return ticket

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The response, once the job has ended."""
        with api_errors(), self._given_up(ticket):
            return ticket.completion.whole(self._answered(ticket, await self._result(ticket.job)))

    async def pieces(self, ticket: Ticket) -> AsyncGenerator[dict[str, Any], None]:
        """The response's chunks, as the text comes. Raises ApiError also after the first chunk."""
        completion = ticket.completion
        said: dict[_Kind, str] = {"thought": "", "text": ""}
        make: dict[_Kind, Callable[[str], dict[str, Any]]] = {
            "thought": completion.thought, "text": completion.piece,
        }
        with api_errors(), self._given_up(ticket):
            async with aclosing(self._texts(ticket.job)) as texts:
                async for so_far in texts:
                    for kind, text in so_far.items():
                        if len(text) > len(said[kind]) and text.startswith(said[kind]):
                            if not any(said.values()):
                                yield completion.first()
                            yield make[kind](text[len(said[kind]):])
                            said[kind] = text
            result = self._answered(ticket, await self._result(ticket.job))
            if not any(said.values()):
                yield completion.first()
            whole: dict[_Kind, str] = {"thought": result.reasoning, "text": result.text}
            if not all(whole[kind].startswith(text) for kind, text in said.items()):
                raise ApiError(500, "The answer began again on another worker and differs.", code="restarted",
                               type="server_error")
            for kind, text in whole.items():
                if text != said[kind]:
                    yield make[kind](text[len(said[kind]):])
            yield completion.last(result)
            if ticket.request.includes_usage:
                yield completion.usage(result)

    async def _texts(self, job: str) -> AsyncGenerator[dict[_Kind, str], None]:
        """All of the job's thought and text so far, each time that there is more. They begin again with another
        attempt, and when the server was away."""
        outage = Outage()
        while True:
            thought = text = ""
            try:
                async with aclosing(self.client.stream(job)) as pieces:
                    async for piece in pieces:
                        if piece.restarted:
                            thought = text = ""
                        thought, text = thought + piece.reasoning, text + piece.text
                        outage.end()
                        yield {"thought": thought, "text": text}
                return
            except ServerUnavailable as error:
                await outage.outlast(error)

    async def _result(self, job: str) -> Result:
        outage = Outage()
        while True:
            try:
                return await self.client.wait(job)
            except ServerUnavailable as error:
                await outage.outlast(error)

    def _answered(self, ticket: Ticket, result: Result) -> Result:
        """A result with an answer. Raises ApiError for any other."""
        self._in_background(self._limits.release(ticket.caller, ticket.job))
        self._metrics.used(ticket.caller.name, result)
        if (error := of_result(result)) is not None:
            raise error
        return result

    @contextmanager
    def _given_up(self, ticket: Ticket) -> Iterator[None]:
        """Cancels the job if the client disconnects, unless the client may ask for it again."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            if not ticket.outlives:
                self._in_background(self._withdraw(ticket))
            raise

    async def _withdraw(self, ticket: Ticket, submitting: asyncio.Future[JobHandle] | None = None) -> None:
        """Cancels a job that nobody waits for. It may still be on its way to the queue."""
        if submitting is not None:
            await asyncio.wait({submitting})
        if not ticket.outlives:
            with suppress(SailqError):
                await self.client.cancel(ticket.job)
        elif submitting is not None and submitting.exception() is None:
            return
        await self._limits.release(ticket.caller, ticket.job)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _card(self, model: str) -> ModelCard:
        card = await self.client.card(model)
        if card is None:
            raise unknown_model(model)
        return card

    async def _job(
        self, caller: Caller, idempotency_key: str | None, request: ChatRequest
    ) -> tuple[str, bool]:
        """(the job's id, whether a request with this key came before)"""
        job = await self.client.new_id()
        if idempotency_key is None:
            return job, False
        key = keys.gateway_request(caller.id, hashlib.sha256(idempotency_key.encode()).hexdigest())
        asked = request.model_dump_json(exclude={"stream", "stream_options"})
        mine = f"{job} {hashlib.sha256(asked.encode()).hexdigest()}".encode()
        connection = self.client.connection
        with server_errors(connection):
            ttl = self.client.settings.result_ttl
            if await connection.set(key, mine, nx=True, ex=ttl):
                return job, False
            first: bytes = await connection.get(key) or mine
        job, _, digest = first.decode().partition(" ")
        if digest != mine.decode().partition(" ")[2]:
            raise ApiError(422, "This Idempotency-Key was used for another request.", code="idempotency_key_reused")
        return job, True

    async def _is_submitted(self, job: str) -> bool:
        try:
            await self.client.result(job)
        except NotFound:
            return False
        return True

    async def _prepared(self, messages: list[dict[str, Any]], card: ModelCard) -> Prepared:
        """Fetches and reads the media. A child process reads them, because a decoder may crash."""
        media = media_of(messages)
        if not media:
            return prepare(messages, card=card)
        put_fetched(media, await self._fetcher.fetch(addresses(media)))
        read = partial(self._readers.prepare, messages, base=None, card=card)
        return await asyncio.get_running_loop().run_in_executor(self._threads, read)


def _seeded(question: Question, request: ChatRequest) -> Question:
    """A question whose stream begins with the same text on another worker, if the first one dies."""
    options = question.options
    if request.stream and options.temperature > 0 and options.seed is None:
        options = options.model_copy(update={"seed": randbelow(2**63)})
    return Question(question.messages, options)


class Outage:
    """A time in which the server does not answer. Jobs outlive it, so their clients need not notice it."""

    def __init__(self) -> None:
        self._until: float | None = None

    def end(self) -> None:
        self._until = None

    async def outlast(self, error: ServerUnavailable) -> None:
        """Waits a moment. Raises the error if the outage has lasted for `_OUTAGE_SECONDS`."""
        now = time.monotonic()
        self._until = self._until or now + _OUTAGE_SECONDS
        if now > self._until:
            raise error
        await asyncio.sleep(_PAUSE_SECONDS)


@contextmanager
def api_errors() -> Iterator[None]:
    """Turns sailq's errors into ApiError."""
    try:
        yield
    except SailqError as error:
        raise api_error(error) from error


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except SailqError as error:
        _log.warning("%s", error)
