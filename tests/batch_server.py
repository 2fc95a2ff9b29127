"""A gateway's Files and Batches alone, with the name of the caller as the API key.

    python tests/batch_server.py REDIS_URL FOLDER

Prints its port, and serves until SIGTERM.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from sailq.producer.gateway.batch_routes import batch_router
from sailq.producer.gateway.batch_runner import BatchRunner
from sailq.producer.gateway.batches import BatchStore
from sailq.producer.gateway.files import FileStore
from sailq.producer.openai_api.errors import ApiError
from sailq.shared.settings import Settings

QUOTA = 2**30


def application(url: str, folder: Path, *, quota: int = QUOTA, max_bytes: int = 2**20, **options: Any) -> FastAPI:
    files, batches = FileStore(folder, quota=quota, max_bytes=max_bytes), BatchStore(folder)
    runner = BatchRunner(batches, files, Settings(redis_url=url), **options)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        runner.start()
        yield
        await run_in_threadpool(runner.stop)

    app = FastAPI(lifespan=running)

    @app.middleware("http")
    async def known(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        name = request.headers.get("authorization", "").removeprefix("Bearer ")
        request.state.caller = SimpleNamespace(name=name)
        return await answer(request)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    app.include_router(batch_router(files, batches, runner.wake))
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serves in a thread; the URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as own:
        print(own.getsockname()[1], flush=True)
        app = application(sys.argv[1], Path(sys.argv[2]), max_bytes=64 * 2**20)
        uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[own])
