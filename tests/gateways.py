"""Gateways on free ports of 127.0.0.1: as processes of their own, and on threads of the test's process."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sailq.producer.archive.retention import Retention
from sailq.producer.gateway.app import create_app
from sailq.producer.gateway.folder import Folder
from sailq.producer.gateway.keys import Keys
from sailq.producer.gateway.page.page import Page
from sailq.producer.gateway.server import bind, server_of
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.producer.media_fetching import MediaFetcher
from sailq.shared.settings import Settings

_ADDRESS = re.compile(r"API is at (\S+)/v1")
START_SECONDS = 90.0


class Gateway(ManagedProcess):
    """`sailq gateway`. `url` has no path; clients of OpenAI's want `f"{url}/v1"`."""

    def __init__(
        self, redis_url: str, log: Path, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> None:
        command = sailq_command("gateway", "--port", "0", "--redis-url", redis_url, *map(str, arguments))
        super().__init__("gateway", command, log, environment)
        try:
            self.wait_until(lambda: "startup complete" in log.read_text(), START_SECONDS)
        except BaseException:
            self.stop()
            raise
        found = _ADDRESS.search(log.read_text())
        assert found, log.read_text()
        self.url = found[1]


@contextmanager
def gateway(
    redis_url: str, log: Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> Iterator[Gateway]:
    """A gateway that has begun to serve, and ends with the block."""
    running = Gateway(redis_url, log, *arguments, environment=environment)
    try:
        yield running
    finally:
        running.stop(40.0)


def key_file(path: Path, **callers: Mapping[str, object]) -> Path:
    """A file of API keys. The key of NAME is `sk-NAME`."""
    entries = {name: {"sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **limits}
               for name, limits in callers.items()}
    path.write_text(json.dumps(entries))
    return path


@contextmanager
def gateway_thread(
    redis_url: str, keys: Path | None = None, max_body: int = 2**20, files: Path | None = None,
    media_from: Sequence[str] = (), media_seconds: float = 3.0, archive: Path | None = None,
) -> Iterator[str]:
    """The URL of a gateway on a thread of this process, which starts at once."""
    fetcher = MediaFetcher(media_from, max_bytes=2**20, max_seconds=media_seconds)
    known = Keys(keys)
    app = create_app(
        Settings(redis_url=redis_url), known, fetcher, max_body=max_body, local=True,
        folder=None if files is None else Folder(files, 2**30),
        page=None if archive is None else Page(archive, Retention(), known, max_body=max_body),
    )
    server = server_of(app)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + START_SECONDS
            while not server.started:
                assert thread.is_alive() and time.monotonic() < until
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
