"""The routes of the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi import Path as PathParameter
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse

from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.frames import read_jpegs
from sailq.shared.jobs import parse
from sailq.shared.media.messages import Prepared
from sailq.shared.validation import StrictModel

from ...archive.caption import Caption
from ...archive.store import Archive
from ...archive.times import read_time
from ...openai_api.errors import ApiError
from ...openai_api.requests import ChatRequest
from ..chat import api_errors
from ..keys import Caller
from ..routes import json_of, state_of
from ..streaming import EventStream, until_disconnected
from .asking import ClipQuestion, FileQuestion
from .texts import language_of

if TYPE_CHECKING:
    from .page import Page

_LIMIT = 60
"""Cards that one request gets."""
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy":
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
    "Vary": "Accept-Language, Cookie",
}
_KEPT = {**_HEADERS, "Cache-Control": "private, max-age=86400, immutable"}
"""For pictures, which never change."""
Q = TypeVar("Q", bound=StrictModel)


class LoginNeeded(Exception):
    """Nobody has logged in."""


router = APIRouter(include_in_schema=False)
Number = Annotated[int, PathParameter(ge=0, lt=2**63)]
_STATIC = {file.name: file.read_bytes() for file in files(__package__).joinpath("static").iterdir()}


def page_of(request: Request) -> Page:
    """What the application has set up."""
    found: Page = request.app.state.page
    return found


def viewer_of(request: Request) -> Caller:
    """Who looks at the page. Raises LoginNeeded."""
    found = page_of(request).sessions.caller(request)
    if found is None:
        raise LoginNeeded
    request.state.caller = found
    return found


Viewer = Annotated[Caller, Depends(viewer_of)]
"""A parameter of routes for people who have logged in."""


def _html(request: Request, template: str, caller: Caller | None, status: int = 200, **values: Any) -> Response:
    page, language = page_of(request), language_of(request.headers.get("accept-language", ""))
    name = caller.name if caller else ""
    html = page.views.page(template, language, name=name, token=page.sessions.token(request), **values)
    return HTMLResponse(html, status, _HEADERS)


@router.head("/")
@router.get("/")
def captions(
    request: Request, caller: Viewer, text: str = "", camera: str = "", since: str = "", failed: str = "",
    before: str = "",
) -> Response:
    failed = "1" if failed == "1" else ""
    asked = {"text": text, "camera": camera, "since": since, "failed": failed}
    with page_of(request).archive() as opened:
        found = opened.search(
            text, camera=camera or None, since=_since(since), failed=bool(failed), before=_before(before),
            limit=_LIMIT,
        )
        cameras = opened.cameras()
    cameras = [camera, *cameras] if camera and camera not in cameras else cameras
    given = {name: value for name, value in asked.items() if value}
    older = "/?" + urlencode({**given, "before": found[-1].id}) if len(found) == _LIMIT else ""
    return _html(
        request, "captions.html", caller, captions=found, cameras=cameras, older=older,
        fleet=page_of(request).glance, most_bytes=page_of(request).most_bytes,
        asked={**asked, "before": before, "filtered": bool(given)},
    )


@router.get("/page/captions/{number}")
def caption(request: Request, caller: Viewer, number: Number) -> Response:
    with page_of(request).archive() as opened:
        found = _found(opened, number)
        frames = list(_frames(opened, found))
    kept = len(frames) == sum(medium["frames"] for medium in found.media)
    may_ask = kept and bool(found.media or found.question)
    return _html(request, "caption.html", caller, caption=found, frames=frames, may_ask=may_ask)


@router.get("/page/thumbnails/{number}")
def thumbnail(request: Request, caller: Viewer, number: Number) -> Response:
    with page_of(request).archive() as opened:
        return _picture(opened.thumbnail(number))


@router.get("/page/captions/{number}/frames/{medium}/{frame}")
def frame(request: Request, caller: Viewer, number: Number, medium: Number, frame: Number) -> Response:
    with page_of(request).archive() as opened:
        media = _found(opened, number).media
        data = opened.clip(media[medium]["blob"]) if medium < len(media) else None
    jpegs = () if data is None else read_jpegs(data)[1]
    return _picture(jpegs[frame] if frame < len(jpegs) else None)


@router.get("/page/events")
async def events(request: Request, caller: Viewer) -> Response:
    page = page_of(request)
    stream = page.live.stream(lambda: page.sessions.caller(request) is not None)
    return StreamingResponse(stream, media_type="text/event-stream", headers={**_HEADERS, "X-Accel-Buffering": "no"})


@router.post("/page/captions/{number}/ask")
async def ask_about_clip(request: Request, caller: Viewer, number: Number) -> Response:
    """Streams the answer to a further question about a clip, as OpenAI's chunks."""
    asked = _asked(ClipQuestion, request, await request.body())

    def read() -> tuple[Caption, Prepared]:
        with page_of(request).archive() as opened:
            found = _found(opened, number)
            return found, asked.prepared(found, opened)

    with api_errors():
        found, prepared = await asyncio.to_thread(read)
    return await _streamed(request, caller, asked.request(found), prepared)


@router.post("/page/ask")
async def ask_about_file(request: Request, caller: Viewer) -> Response:
    """Streams the answer to a question about a file, as OpenAI's chunks."""
    return await _streamed(request, caller, _asked(FileQuestion, request, await request.body()).request())


def _asked(kind: type[Q], request: Request, body: bytes) -> Q:
    page_of(request).sessions.check(request, request.headers.get("x-sailq-token", ""))
    with api_errors():
        return parse(kind, json_of(request, body))


async def _streamed(request: Request, caller: Caller, asked: ChatRequest, prepared: Prepared | None = None) -> Response:
    chat = state_of(request).chat
    ticket = await until_disconnected(request, chat.submit(asked, caller, prepared=prepared))
    return await EventStream.begun(request, chat.pieces(ticket))


@router.get("/page/static/{name}")
def asset(name: str) -> Response:
    if name not in _STATIC:
        raise _missing()
    kept = {**_HEADERS, "Cache-Control": "no-cache"}
    return Response(_STATIC[name], headers=kept, media_type=_TYPES[name.rpartition(".")[2]])


@router.get("/page/login")
def login(request: Request) -> Response:
    return _html(request, "login.html", None, refused=False)


@router.post("/page/login")
def log_in(request: Request, key: Annotated[str, Form()]) -> Response:
    response = RedirectResponse("/", 303, _HEADERS)
    if not page_of(request).sessions.log_in(key, request, response):
        return _html(request, "login.html", None, 403, refused=True)
    return response


@router.post("/page/logout")
def log_out(request: Request, caller: Viewer, token: Annotated[str, Form()] = "") -> Response:
    page_of(request).sessions.check(request, token)
    response = RedirectResponse("/page/login", 303, _HEADERS)
    page_of(request).sessions.log_out(request, response)
    return response


def error_page(request: Request, error: ApiError) -> Response | None:
    """What a person sees in place of an error's JSON; None for what no person has opened."""
    path, accepted = request.url.path, request.headers.get("accept", "")
    if "text/html" not in accepted or not (path == "/" or path.startswith("/page/")):
        return None
    return _html(request, "error.html", None, error.status, error=error)


async def login_page(request: Request, error: Exception) -> Response:
    """Sends a person to the login; anything else that the page asks for is refused."""
    if request.method == "GET" and (request.url.path == "/" or request.url.path.startswith("/page/captions/")):
        return RedirectResponse("/page/login", 303, _HEADERS)
    refused = ApiError(401, "The login has ended: load the page again.", code="login_needed",
                       type="authentication_error")
    return JSONResponse(refused.body, refused.status, _HEADERS)


def _before(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ApiError(400, "before must be the id of a caption, a number.", code="invalid_value", param="before")
    return int(text)


def _since(text: str) -> float | None:
    try:
        return read_time(text, time.time()) if text else None
    except BadRequest as error:
        raise ApiError(400, str(error), code="invalid_value", param="since") from None


def _found(archive: Archive, number: int) -> Caption:
    found = archive.get(number)
    if found is None:
        raise _missing()
    return found


def _frames(archive: Archive, caption: Caption) -> Iterator[Mapping[str, Any]]:
    """What the page shows of each frame that is kept."""
    for medium, about in enumerate(caption.media):
        data = archive.clip(about["blob"])
        if data is None:
            continue
        try:
            (_, height, width), jpegs = read_jpegs(data)
        except SailqError:
            continue
        times = about["times"] or [None] * len(jpegs)
        for number, at in enumerate(times):
            yield {
                "url": f"/page/captions/{caption.id}/frames/{medium}/{number}", "height": height, "width": width,
                "name": f"{number + 1}" if at is None else f"{at:.2f} s",
            }


def _picture(jpeg: bytes | None) -> Response:
    if jpeg is None:
        raise _missing()
    return Response(jpeg, headers=_KEPT, media_type="image/jpeg")


def _missing() -> ApiError:
    return ApiError(404, "The archive has no such caption or picture.", code="not_found")
