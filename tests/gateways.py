"""Gateways as processes of their own, on free ports of 127.0.0.1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sailq.producer.managed_process import ManagedProcess, sailq_command

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
