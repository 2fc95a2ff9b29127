"""Recorded commands as templates, to be sent again with other ids at another time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from wiretap import Sent, parse_commands

_SECONDS = re.compile(rb"\d{10}")
_FRACTION = re.compile(rb"\d{10}\.\d+")
_DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
"""As RQ writes it."""
_NEAR = 8 * 86_400
"""A number within so many seconds of the recording is a time: lives to come are the longest, of failed jobs."""


class Values(dict[bytes, bytes]):
    """What a template's holes are filled with, by name; a time of the recording moves to as long before or after `now`.

    A value is as long as the one that was recorded: only those whose names begin with `=` stand with their length.
    """

    now = 0.0
    """Seconds since the epoch."""

    def __missing__(self, name: bytes) -> bytes:
        kind, at = name[:1], self.now + float(name[1:])
        if kind == b"s":
            return b"%d" % at
        if kind == b"f":
            return b"%.6f" % at
        return _second(int(at)) % (at % 1 * 1e6)


@lru_cache(4)
def _second(at: int) -> bytes:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%%06dZ").encode()


def bulk(value: bytes) -> bytes:
    """A value with its length before it, as `=` holes want it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


class Trip:
    """What goes out at once, and how many replies come back.

    Attributes:
        watches, ends: whether its connection is kept for what follows, and whether that is over with it.
    """

    def __init__(self, commands: Sequence[Sequence[bytes]], at: float, recorded: Mapping[bytes, bytes]) -> None:
        """`at`: when it was recorded. `recorded`: the values that are to be replaced, by their holes' names; those that
        hold others come first."""
        self.commands = [list(command) for command in commands]
        self.replies = len(commands)
        self.watches = commands[-1][0] == b"WATCH"
        self.ends = commands[-1][0] in {b"EXEC", b"UNWATCH"}
        self._template = b"".join(_packed(command, at, recorded) for command in commands)

    @classmethod
    def of(cls, sent: Sent, recorded: Mapping[bytes, bytes]) -> Trip:
        return cls(parse_commands(sent.raw), sent.at, recorded)

    def render(self, now: float, values: Values) -> bytes:
        values.now = now
        return self._template % values


def _packed(command: Sequence[bytes], at: float, recorded: Mapping[bytes, bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(_argument(argument, at, recorded) for argument in command)


def _argument(argument: bytes, at: float, recorded: Mapping[bytes, bytes]) -> bytes:
    hole = _time(argument, at)
    if hole is not None:
        return hole
    length, argument = len(argument), _escaped(argument)
    for name, value in recorded.items():
        if name.startswith(b"="):
            if argument == _escaped(value):
                return b"%%(%b)b" % name
        else:
            argument = argument.replace(_escaped(value), b"%%(%b)b" % name)
    return b"$%d\r\n%b\r\n" % (length, argument)


def _time(argument: bytes, at: float) -> bytes | None:
    if _DATE.fullmatch(argument):
        moment = datetime.strptime(argument.decode(), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        return b"$27\r\n%%(d%+.6f)b\r\n" % (moment.timestamp() - at)
    whole, exact = _SECONDS.fullmatch(argument), _FRACTION.fullmatch(argument)
    if not (whole or exact) or abs(float(argument) - at) > _NEAR:
        return None
    offset = float(argument) - at
    return b"$10\r\n%%(s%+.6f)b\r\n" % offset if whole else b"$17\r\n%%(f%+.6f)b\r\n" % offset


def _escaped(value: bytes) -> bytes:
    return value.replace(b"%", b"%%")


class Refused(Exception):
    """The server answered with an error, where the recorded process met none."""


def parse_replies(data: bytes, count: int) -> list[Any] | None:
    """The first `count` replies in RESP 2, lists of lists; None while they are not all there. Raises Refused."""
    replies, at = [], 0
    try:
        for _ in range(count):
            reply, at = _reply(data, at)
            replies.append(reply)
    except (IndexError, ValueError):
        return None
    return replies


def _reply(data: bytes, at: int) -> tuple[Any, int]:
    kind, end = data[at], data.index(b"\r\n", at)
    line, at = data[at + 1 : end], end + 2
    if kind == 0x2B:  # +
        return line, at
    if kind == 0x3A:  # :
        return int(line), at
    if kind == 0x2D:  # -
        raise Refused(line.decode())
    size = int(line)
    if size < 0:
        return None, at
    if kind == 0x24:  # $
        if at + size + 2 > len(data):
            raise ValueError
        return data[at : at + size], at + size + 2
    items = []
    for _ in range(size):
        item, at = _reply(data, at)
        items.append(item)
    return items, at


