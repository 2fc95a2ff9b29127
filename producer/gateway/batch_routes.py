"""The routes of OpenAI's Files and Batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

import pydantic_core
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from sailq.shared.errors import BadRequest, quoted
from sailq.shared.validation import StrictModel, parse

from ..openai_api.batch_input import ENDPOINT
from ..openai_api.errors import ApiError
from .batches import BatchStore
from .files import LIFETIME, FileStore
from .uploads import receive

FILES = "/v1/files"
_BODY_BYTES = 64 * 1024
"""The most bytes of the body that creates a batch."""
Order = Literal["asc", "desc"]
_FORM = {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}},
}}}}


class ExpiresAfter(StrictModel):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=LIFETIME)]


class BatchRequest(StrictModel):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
    ] | None = None
    output_expires_after: ExpiresAfter | None = None


class _Listed(Protocol):
    @property
    def id(self) -> str: ...

    def as_json(self) -> dict[str, Any]: ...


L = TypeVar("L", bound=_Listed)


def batch_router(files: FileStore, batches: BatchStore, wake: Callable[[], None]) -> APIRouter:
    """The routes. `wake`: called when a batch was created or is to be cancelled.

    The owner of files and batches is the name of `request.state.caller`, or "" if there is none.
    """
    router = APIRouter()

    @router.post(FILES, openapi_extra={"requestBody": _FORM})
    async def create_file(request: Request) -> dict[str, Any]:
        """Uploads the input of a batch: JSONL whose lines are requests."""
        async with contextmanager_in_threadpool(files.upload()) as upload:
            fields, name = await receive(request, upload)
            stored = await run_in_threadpool(upload.finish, _owner(request), name, "batch", _lifetime(fields))
        return stored.as_json()

    @router.get(FILES)
    def list_files(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc", purpose: str | None = None,
    ) -> dict[str, Any]:
        """This key's files."""
        found = [file for file in files.all(_owner(request)) if purpose in (None, file.purpose)]
        return _page(found, after, limit, order)

    @router.get("/v1/files/{id}")
    def retrieve_file(request: Request, id: str) -> dict[str, Any]:
        """What is known of a file."""
        return files.get(_owner(request), id).as_json()

    @router.get("/v1/files/{id}/content")
    def file_content(request: Request, id: str) -> Response:
        """A file's content."""
        stored = files.get(_owner(request), id)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
        return FileResponse(files.path(stored), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{id}")
    def delete_file(request: Request, id: str) -> dict[str, Any]:
        """Deletes a file. A batch that has not begun needs its input."""
        files.delete(_owner(request), id)
        return {"id": id, "object": "file", "deleted": True}

    @router.post("/v1/batches", openapi_extra={"requestBody": {
        "required": True, "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
    }})
    async def create_batch(request: Request) -> dict[str, Any]:
        """Runs the requests of a file."""
        asked = _read(await _json(request))

        def create() -> dict[str, Any]:
            owner = _owner(request)
            if files.get(owner, asked.input_file_id).purpose != "batch":
                raise ApiError(400, "The purpose of the input file must be 'batch'.", code="invalid_purpose",
                               param="input_file_id")
            files.check_room()
            lifetime = asked.output_expires_after.seconds if asked.output_expires_after else LIFETIME
            batch = batches.create(owner, asked.input_file_id, ENDPOINT, asked.metadata, lifetime)
            wake()
            return batch.as_json()

        return await run_in_threadpool(create)

    @router.get("/v1/batches")
    def list_batches(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        """This key's batches, the newest first."""
        return _page(batches.all(_owner(request)), after, limit, "desc")

    @router.get("/v1/batches/{id}")
    def retrieve_batch(request: Request, id: str) -> dict[str, Any]:
        """The state of a batch."""
        return batches.get(_owner(request), id).as_json()

    @router.post("/v1/batches/{id}/cancel")
    def cancel_batch(request: Request, id: str) -> dict[str, Any]:
        """Ends a batch early. It then has the answers so far."""
        batch = batches.cancel(_owner(request), id)
        wake()
        return batch.as_json()

    return router


def _owner(request: Request) -> str:
    name: str = getattr(getattr(request.state, "caller", None), "name", "")
    return name


def _lifetime(fields: dict[str, str]) -> int:
    """Seconds that an uploaded file is kept. Raises ApiError (400) for a form that is not for a batch."""
    if "purpose" not in fields:
        raise ApiError(400, "purpose is missing.", code="missing_required_parameter", param="purpose")
    if fields["purpose"] != "batch":
        raise ApiError(400, "The purpose must be 'batch'.", code="invalid_value", param="purpose")
    given = {name: fields[f"expires_after[{name}]"] for name in ("anchor", "seconds")
             if f"expires_after[{name}]" in fields}
    if not given:
        return LIFETIME
    seconds = given.get("seconds", "")
    try:
        return parse(ExpiresAfter, {**given, "seconds": int(seconds) if seconds.isdecimal() else seconds}).seconds
    except (BadRequest, ValueError):
        raise ApiError(400, f"expires_after: the anchor must be created_at, and the seconds 3600 to {LIFETIME}.",
                       code="invalid_value", param="expires_after") from None


async def _json(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES:
            raise ApiError(413, f"The body is larger than {_BODY_BYTES >> 10} KiB.", code="request_too_large")
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {quoted(str(error))}.", code="invalid_json") from None


def _read(fields: Any) -> BatchRequest:
    try:
        return BatchRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = quoted(".".join(str(step) for step in first["loc"]))
        raise ApiError(400, f"{where or 'The body'}: {quoted(first['msg'])}.", code="invalid_value",
                       param=where or None) from None


def _page(items: Sequence[L], after: str | None, limit: int, order: Order) -> dict[str, Any]:
    """A page of OpenAI's lists. `items`: all of them, the newest first."""
    ordered = list(items) if order == "desc" else list(reversed(items))
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item.id == after]
        if not places:
            raise ApiError(404, "There is nothing with the id in 'after'.", code="not_found", param="after")
        ordered = ordered[places[0] + 1 :]
    page = ordered[:limit]
    return {
        "object": "list", "data": [item.as_json() for item in page], "has_more": len(ordered) > len(page),
        "first_id": page[0].id if page else None, "last_id": page[-1].id if page else None,
    }
