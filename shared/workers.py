"""The workers that are up, as their records on the server describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import redis

from . import keys
from .connection import server_errors


@dataclass(frozen=True)
class WorkerInfo:
    """A worker's record, which each beat renews. `beat_age`, `uptime`: seconds. `model_version`: a hash of the model's
    files. `alias`: its second model name, or empty. `tokens_per_second`: over all its answers since the previous beat.
    `version`: sailq's."""

    name: str
    host: str
    pid: int
    model: str
    model_version: str
    alias: str
    device: str
    slots: int
    running: int
    tokens_per_second: float
    beat_age: float
    uptime: float
    version: str

    @property
    def names(self) -> list[str]:
        """The model names whose jobs it runs: its model, and its alias if it has one."""
        return [self.model, self.alias] if self.alias else [self.model]


def live_workers(connection: redis.Redis, model: str | None = None) -> list[WorkerInfo]:
    """The workers whose record has not expired, sorted by name. With `model`, only those with this model or alias.

    Raises ServerUnavailable.
    """
    with server_errors(connection):
        names = sorted(name.decode() for name in connection.zrange(keys.WORKERS, 0, -1))
        with connection.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for name in names:
                pipeline.hgetall(keys.worker(name))
            (seconds, microseconds), *records = pipeline.execute()
    infos = [_worker(record, seconds + microseconds / 1e6) for record in records if record]
    return [info for info in infos if model is None or model in info.names]


def _worker(record: Mapping[bytes, bytes], now: float) -> WorkerInfo:
    said = {name.decode(): value.decode(errors="replace") for name, value in record.items()}
    return WorkerInfo(
        name=said.get("name", "?"),
        host=said.get("host", "?"),
        pid=int(said.get("pid", 0)),
        model=said.get("model", "?"),
        model_version=said.get("model_version", ""),
        alias=said.get("alias", ""),
        device=said.get("device", "?"),
        slots=int(said.get("slots", 0)),
        running=int(said.get("running", 0)),
        tokens_per_second=float(said.get("tokens_per_second", 0)),
        beat_age=max(0.0, now - float(said.get("beat", now))),
        uptime=max(0.0, now - float(said.get("started", now))),
        version=said.get("version", "?"),
    )
