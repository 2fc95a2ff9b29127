"""The routes of OpenAI's Files and Batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from sailq.shared.errors import BadRequest, quoted
from sailq.shared.validation import StrictModel, parse, reason

from ..openai_api.batch_input import ENDPOINT
from ..openai_api.errors import ApiError
from .batches import BatchStore
from .files import LIFETIME, FileStore
from .routes import Key, json_of
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

    Files and batches belong to the name of the caller's key.
    """
    router = APIRouter()

    @router.post(FILES, openapi_extra={"requestBody": _FORM})
    async def create_file(request: Request, caller: Key) -> dict[str, Any]:
        """Uploads the input of a batch: JSONL whose lines are requests."""
        async with contextmanager_in_threadpool(files.upload()) as upload:
            fields, name = await receive(request, upload)
            stored = await run_in_threadpool(upload.finish, caller.name, name, "batch", _lifetime(fields))
        return stored.as_json()

    @router.get(FILES)
    def list_files(
        caller: Key, after: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc", purpose: str | None = None,
    ) -> dict[str, Any]:
        """This key's files."""
        found = [file for file in files.all(caller.name) if purpose in (None, file.purpose)]
        return _page(found, after, limit, order)

    @router.get("/v1/files/{id}")
    def retrieve_file(id: str, caller: Key) -> dict[str, Any]:
        """What is known of a file."""
        return files.get(caller.name, id).as_json()

    @router.get("/v1/files/{id}/content")
    def file_content(id: str, caller: Key) -> Response:
        """A file's content."""
        stored = files.get(caller.name, id)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
        return FileResponse(files.path(stored), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{id}")
    def delete_file(id: str, caller: Key) -> dict[str, Any]:
        """Deletes a file. A batch that has not begun needs its input."""
        files.delete(caller.name, id)
        return {"id": id, "object": "file", "deleted": True}

    @router.post("/v1/batches", openapi_extra={"requestBody": {
        "required": True, "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
    }})
    async def create_batch(request: Request, caller: Key) -> dict[str, Any]:
        """Runs the requests of a file."""
        asked = _read(await _json(request))

        def create() -> dict[str, Any]:
            if files.get(caller.name, asked.input_file_id).purpose != "batch":
                raise ApiError(400, "The purpose of the input file must be 'batch'.", code="invalid_purpose",
                               param="input_file_id")
            files.check_room()
            lifetime = asked.output_expires_after.seconds if asked.output_expires_after else LIFETIME
            batch = batches.create(
                caller.name, asked.input_file_id, ENDPOINT, asked.metadata, lifetime, caller.max_queued
            )
            wake()
            return batch.as_json()

        return await run_in_threadpool(create)

    @router.get("/v1/batches")
    def list_batches(
        caller: Key, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        """This key's batches, the newest first."""
        return _page(batches.all(caller.name), after, limit, "desc")

    @router.get("/v1/batches/{id}")
    def retrieve_batch(id: str, caller: Key) -> dict[str, Any]:
        """The state of a batch."""
        return batches.get(caller.name, id).as_json()

    @router.post("/v1/batches/{id}/cancel")
    def cancel_batch(id: str, caller: Key) -> dict[str, Any]:
        """Ends a batch early. It then has the answers so far."""
        batch = batches.cancel(caller.name, id)
        wake()
        return batch.as_json()

    return router


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
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES:
            raise ApiError(413, f"The body is larger than {_BODY_BYTES >> 10} KiB.", code="request_too_large")
    return json_of(request, body)


def _read(fields: Any) -> BatchRequest:
    try:
        return BatchRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = quoted(".".join(str(step) for step in first["loc"]))
        raise ApiError(400, f"{where or 'The body'}: {quoted(reason(first))}.", code="invalid_value",
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
