"""The routes of chat, models, health and metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from sailq.shared.errors import SailqError, quoted
from sailq.shared.workers import live_workers

from ..openai_api.errors import ApiError, unknown_model
from ..openai_api.json_text import read_json
from ..openai_api.requests import ChatRequest, read_request
from .chat import api_errors
from .keys import Caller
from .state import State
from .streaming import EventStream, until_disconnected

router = APIRouter()
_CHAT_BODY = {"required": True, "content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}


def state_of(request: Request) -> State:
    """What the application has set up."""
    found: State = request.app.state.sailq
    return found


def caller_of(request: Request) -> Caller:
    """Who sends a request. Raises ApiError (401)."""
    found = state_of(request).keys.caller(request.headers.get("authorization"))
    if found is None:
        raise ApiError(401, "The API key is missing or unknown.", code="invalid_api_key",
                       type="authentication_error", headers={"WWW-Authenticate": "Bearer"})
    request.state.caller = found
    return found


Key = Annotated[Caller, Depends(caller_of)]
"""A parameter of routes that need a key."""


@router.post("/v1/chat/completions", openapi_extra={"requestBody": _CHAT_BODY})
async def chat_completions(request: Request, caller: Key) -> Response:
    """Answers messages with text, images and videos."""
    chat = state_of(request).chat
    asked = read_request(json_of(request, await request.body()))
    submitting = chat.submit(asked, caller, request.headers.get("idempotency-key"))
    ticket = await until_disconnected(request, submitting)
    if not asked.stream:
        return JSONResponse(await until_disconnected(request, chat.whole(ticket)))
    return await EventStream.begun(request, chat.pieces(ticket))


@router.get("/v1/models")
async def models(request: Request, caller: Key) -> dict[str, Any]:
    """The models that workers serve, or have served in the last 30 days."""
    with api_errors():
        cards = await state_of(request).client.models()
    return {"object": "list", "data": [_model(card.name, card.context) for card in cards]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str, caller: Key) -> dict[str, Any]:
    """One of these models."""
    with api_errors():
        card = await state_of(request).client.card(name)
    if card is None:
        raise unknown_model(quoted(name))
    return _model(card.name, card.context)


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> Response:
    """200 while the gateway runs."""
    return PlainTextResponse("ok\n")


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 if the server answers and a worker is up, else 503."""
    try:
        workers = await asyncio.to_thread(live_workers, state_of(request).connection)
    except SailqError:
        return PlainTextResponse("the queue's server does not answer\n", 503)
    if not workers:
        return PlainTextResponse("no worker is up\n", 503)
    return PlainTextResponse(f"workers: {len(workers)}\n")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


def json_of(request: Request, body: bytes) -> Any:
    """The JSON of a body. Only a body of this type is read: a web page cannot send one to another site unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    try:
        return read_json(body)
    except ValueError as error:
        raise ApiError(400, f"The body cannot be read as JSON: {quoted(str(error))}.", code="invalid_json") from None


def _model(name: str, context: int) -> dict[str, Any]:
    """OpenAI's model object; `max_model_len` is vLLM's."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "sailq", "max_model_len": context}
