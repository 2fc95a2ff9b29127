"""Registers a worker on the server: its models' cards, and a record that each beat renews."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from importlib.metadata import version

import redis
from redis.client import Pipeline

from sailq.shared import keys
from sailq.shared.codec import encode
from sailq.shared.connection import ServerClock, server_errors
from sailq.shared.errors import Unsupported
from sailq.shared.scripts import write

from ..engine.engine import Engine
from ..engine.scheduler import Scheduler
from ..queue.consumer import RECORD_SECONDS
from .systemd_notifier import SystemdNotifier

_CARD_TTL = 30 * 86_400
_CARD_SECONDS = 30.0
"""Seconds between two renewals of the cards. They restore cards that a flushed server has lost."""


class Registration:
    """The registration of one worker, `name`. `models`: the model names that it serves, the model's own name first."""

    def __init__(
        self, connection: redis.Redis, engine: Engine, scheduler: Scheduler, notifier: SystemdNotifier, name: str,
        models: tuple[str, ...],
    ) -> None:
        self._connection, self._scheduler, self._notifier = connection, scheduler, notifier
        self._name, self._models, self._card, self._slots = name, models, engine.card, engine.slots
        self._clock = ServerClock(connection)
        self._tokens, self._at = 0, time.monotonic()
        self._cards_at = self._at
        self._record = {
            "name": name, "host": socket.gethostname(), "pid": os.getpid(), "model": models[0],
            "model_version": engine.card.version, "alias": "".join(models[1:]), "device": engine.device,
            "slots": engine.slots, "version": version("sailq"), "started": self._clock.now(),
            "model_loads": Engine.loads,
        }

    def publish_cards(self) -> None:
        """Publishes the card of each model name. An alias gets the card of the worker that started last.

        Raises ServerUnavailable, and Unsupported if newer workers serve this server: this worker does not know the
        queues on which their producers' jobs wait.
        """
        with server_errors(self._connection), self._connection.pipeline() as pipeline:
            newest = int(self._connection.get(keys.NEWEST) or 0)
            if newest > keys.PROTOCOL:
                raise Unsupported(
                    f"This server's jobs use protocol {newest}, and this worker uses protocol {keys.PROTOCOL}: "
                    "install the version of sailq that its producers have."
                )
            pipeline.set(keys.NEWEST, keys.PROTOCOL)
            self._add_cards(pipeline, only_missing=False)
            write(pipeline, self._connection)

    def _add_cards(self, pipeline: Pipeline, *, only_missing: bool) -> None:
        for model in self._models:
            card = encode(self._card.model_copy(update={"name": model}))
            pipeline.set(keys.model(model), card, ex=_CARD_TTL, nx=only_missing)
            pipeline.expire(keys.model(model), _CARD_TTL)
            pipeline.sadd(keys.MODELS, model)
        self._cards_at = time.monotonic()

    def beat(self, pipeline: Pipeline) -> None:
        """Renews the record, which expires when the beats stop, and the cards; reports the beat to systemd."""
        running = self._scheduler.running
        self._notifier.beat(running, self._slots)
        now, at, tokens = self._clock.now(), time.monotonic(), self._scheduler.counts.generation_tokens
        pipeline.hset(keys.worker(self._name), mapping={
            **self._record, "running": running, "beat": now,
            "tokens_per_second": (tokens - self._tokens) / max(at - self._at, 1e-3),
        })
        self._tokens, self._at = tokens, at
        pipeline.expire(keys.worker(self._name), RECORD_SECONDS)
        pipeline.zadd(keys.WORKERS, {self._name: now})
        pipeline.zremrangebyscore(keys.WORKERS, 0, now - RECORD_SECONDS)
        if at > self._cards_at + _CARD_SECONDS:
            self._add_cards(pipeline, only_missing=True)

    def withdraw(self) -> None:
        with suppress(redis.RedisError):  # both expire by themselves
            self._connection.delete(keys.worker(self._name))
            self._connection.zrem(keys.WORKERS, self._name)
