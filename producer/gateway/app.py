"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from sailq.shared.connection import connect
from sailq.shared.errors import quoted
from sailq.shared.settings import Settings
from sailq.shared.validation import reason

from ..aio import AsyncClient
from ..media_fetching import MediaFetcher
from ..openai_api.batch_input import MAX_BYTES
from ..openai_api.errors import ApiError
from . import routes
from .batch_routes import FILES
from .chat import Chat
from .folder import Folder
from .keys import Keys
from .metrics import Metrics
from .middleware import BodyLimits, Counted, LocalHosts, Stopping
from .page.page import Page
from .page.routes import LoginNeeded, error_page, login_page
from .page.routes import router as page_router
from .state import State
from .streaming import Disconnected

_FORM_BYTES = 64 * 1024
"""What a form adds to its file."""


def create_app(
    settings: Settings, keys: Keys, fetcher: MediaFetcher, *, max_body: int, local: bool, folder: Folder | None = None,
    page: Page | None = None,
) -> FastAPI:
    """The application.

    Args:
        max_body: bytes of a request's body; the files of batches have their own limit.
        local: whether only this machine can reach the gateway.
        folder: for files and batches; without it there are none.
        page: the page at `/` and its archive, or None.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(settings=settings) as client:
            chat = Chat(client, fetcher, metrics)
            with connect(settings.redis_url) as connection:
                app.state.sailq = State(keys, client, connection, chat, metrics)
                try:
                    async with (
                        folder.running(settings, keys, fetcher) if folder else nullcontext(),
                        page.running(settings) if page else nullcontext(),
                    ):
                        yield
                finally:
                    await chat.close()

    app = FastAPI(
        title="sailq", version=version("sailq"), lifespan=running,
        description="Vision-language models behind a queue, with OpenAI's API.",
    )
    limits = {FILES: MAX_BYTES + _FORM_BYTES} if folder else {}
    app.add_middleware(BodyLimits, limit=lambda path: limits.get(path, max_body))
    if local and not keys.given:
        app.add_middleware(LocalHosts)
    app.add_middleware(Stopping)
    app.add_middleware(Counted, metrics=metrics)
    for kind, handler in {
        ApiError: _api_error, HTTPException: _http_error, RequestValidationError: _invalid,
        LoginNeeded: login_page, Disconnected: _disconnected, ClientDisconnect: _disconnected, Exception: _unexpected,
    }.items():
        app.add_exception_handler(kind, handler)
    app.include_router(routes.router)
    if folder is not None:
        app.include_router(folder.router, dependencies=[Depends(routes.caller_of)])
    if page is not None:
        app.include_router(page_router)
    app.state.page = page
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    shown = error_page(request, error) if request.app.state.page else None
    return shown or JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework: no such path, or another method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    what = f"{request.method} {quoted(request.url.path)}: {error.detail}."
    return await _api_error(request, ApiError(error.status_code, what, code=code, headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    """An invalid parameter of a path, a query or a form."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = quoted(str(first["loc"][-1]))
    return await _api_error(request, ApiError(400, f"{name}: {reason(first)}.", code="invalid_value", param=name))


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unexpected(request: Request, error: Exception) -> Response:
    what = "The gateway failed; its log says why."
    return await _api_error(request, ApiError(500, what, code="internal", type="server_error"))
