"""The fleet at a glance: boxes, slots, speed, the queue, and what is wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from sailq.shared import keys
from sailq.shared.connection import server_errors
from sailq.shared.errors import SailqError
from sailq.shared.workers import live_workers

_OLD_SECONDS = 20.0
"""Age in seconds after which a look says nothing any longer."""


@dataclass(frozen=True)
class Glance:
    """The state of the fleet. `models`: the names that workers serve. `problem`: a sentence; empty if nothing is
    wrong."""

    workers: int = 0
    slots: int = 0
    running: int = 0
    waiting: int = 0
    tokens_per_second: float = 0.0
    models: tuple[str, ...] = ()
    problem: str = ""


class Fleet:
    """What was last seen of the fleet. Pages do not wait for the server, which may hang."""

    def __init__(self) -> None:
        self._seen, self._at = Glance(), time.monotonic()

    @property
    def glance(self) -> Glance:
        if time.monotonic() - self._at > _OLD_SECONDS:
            return Glance(problem="The queue's server does not answer.")
        return self._seen

    def look(self, connection: redis.Redis) -> None:
        """Reads the state from the server."""
        try:
            seen = _look(connection)
        except SailqError:
            seen = Glance(problem="The queue's server does not answer.")
        except ValueError:
            seen = Glance(problem="A worker's record cannot be read.")
        self._seen, self._at = seen, time.monotonic()


def _look(connection: redis.Redis) -> Glance:
    workers = live_workers(connection)
    served = {name for worker in workers for name in worker.names}
    with server_errors(connection):
        models = {name.decode() for name in connection.smembers(keys.MODELS)}
        with connection.pipeline(transaction=False) as pipeline:
            for model in models | served:
                pipeline.llen(keys.waiting(keys.queue(model)))
            waiting = sum(pipeline.execute())
    return Glance(
        len(workers), sum(worker.slots for worker in workers), sum(worker.running for worker in workers), waiting,
        sum(worker.tokens_per_second for worker in workers),
        tuple(sorted(served)),
        "" if workers else "No worker is up.",
    )
