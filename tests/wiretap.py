"""What a process sends to its server, command by command, with the thread that sends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from redis.connection import AbstractConnection


class Sent(NamedTuple):
    """What went out at once: a command, or a pipeline. `at`: seconds since the epoch."""

    at: float
    thread: str
    raw: bytes

    @property
    def commands(self) -> list[list[bytes]]:
        return parse_commands(self.raw)


def parse_commands(raw: bytes) -> list[list[bytes]]:
    """The arguments of each command in what redis-py sends: arrays of bulk strings."""
    commands, at = [], 0

    def number() -> int:
        nonlocal at
        end = raw.index(b"\r\n", at)
        value = int(raw[at + 1 : end])
        at = end + 2
        return value

    while at < len(raw):
        arguments = []
        for _ in range(number()):
            size = number()
            arguments.append(raw[at : at + size])
            at += size + 2
        commands.append(arguments)
    return commands


@contextmanager
def wiretap() -> Iterator[list[Sent]]:
    """All that redis-py sends in this process while the block runs, in a list that grows."""
    sent: list[Sent] = []
    send = AbstractConnection.send_packed_command

    def listen(self: AbstractConnection, command: Any, *arguments: Any, **options: Any) -> Any:
        raw = command if isinstance(command, bytes) else b"".join(command)
        sent.append(Sent(time.time(), threading.current_thread().name, raw))
        return send(self, command, *arguments, **options)

    AbstractConnection.send_packed_command = listen
    try:
        yield sent
    finally:
        AbstractConnection.send_packed_command = send


def save(sent: list[Sent], path: Path) -> None:
    path.write_bytes(msgpack.packb([tuple(one) for one in sent]))


def load(path: Path) -> list[Sent]:
    return [Sent(*one) for one in msgpack.unpackb(path.read_bytes())]
