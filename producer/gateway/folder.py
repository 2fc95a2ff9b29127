"""The folder of files and batches, and the gateway's part in running them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from sailq.shared.errors import BadRequest
from sailq.shared.settings import Settings

from ..media_fetching import MediaFetcher
from .batch_routes import batch_router
from .batch_runner import BatchRunner
from .batches import BatchStore
from .files import FileStore
from .keys import Keys


class Folder:
    """A folder that several gateways may share."""

    def __init__(self, path: Path, quota: int) -> None:
        """`quota`: bytes that it may have before new files are refused. Raises BadRequest."""
        try:
            self._files, self._batches = FileStore(path, quota=quota), BatchStore(path)
        except OSError as error:
            raise BadRequest(f"{path} cannot be used for files: {error.strerror}.") from None
        self._runner: BatchRunner | None = None

    @property
    def router(self) -> APIRouter:
        return batch_router(self._files, self._batches, self._wake)

    @asynccontextmanager
    async def running(self, settings: Settings, keys: Keys, fetcher: MediaFetcher) -> AsyncIterator[None]:
        """Runs batches inside the block."""
        loop = asyncio.get_running_loop()

        def arguments(owner: str, asked: dict[str, Any]) -> dict[str, Any]:
            return keys.named(owner).arguments(asked)

        def fetch(urls: list[str]) -> list[bytes]:
            return asyncio.run_coroutine_threadsafe(fetcher.fetch(urls), loop).result()

        self._runner = BatchRunner(self._batches, self._files, settings, arguments=arguments, fetch=fetch)
        self._runner.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._runner.stop)  # its threads may wait for this loop

    def _wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()
