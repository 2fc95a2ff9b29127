"""What can be set, with its default. Each field is read from `SAILQ_<NAME>`; a command's flag comes before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import BadRequest
from .jobs import Identifier


class Settings(BaseSettings):
    """Both sides' settings. Times to live in seconds.

    Attributes:
        redis_url: the server, as redis://, rediss:// or unix:// URL, or redis+sentinel:// or rediss+sentinel://.
        model: a model's name or directory.
        alias: a second name under which a worker serves its model, for which other versions of it answer, too.
        result_ttl: how long a result is kept.
        job_ttl: how long a job and its clips wait for a worker.
        conversation_ttl: how long a conversation, and the clips that it keeps, are kept after its last turn.
        max_queued: most jobs that may wait for a model; a producer's next one is refused, or waits.
        max_blob_bytes: most bytes of clips on the server; a producer's next clip is refused, or waits.
        results_stream: most results in `sailq:results`, a stream of all finished jobs for consumer groups; 0: none.
        sync_replicas: replicas that must have a submission, or a result, before it counts as written; 0: none.
        metrics_port: where a worker shows its metrics to Prometheus; 0: nowhere.
        metrics_address: of which of the machine's addresses; 0.0.0.0: of all.
    """

    model_config = SettingsConfigDict(env_prefix="SAILQ_", frozen=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    model: str = "sailq-tiny"
    alias: Identifier | None = None
    result_ttl: int = Field(default=86_400, ge=1)
    job_ttl: int = Field(default=86_400, ge=1)
    conversation_ttl: int = Field(default=86_400, ge=1)
    max_queued: int = Field(default=10_000, ge=1)
    max_blob_bytes: int = Field(default=2 * 2**30, ge=1)
    results_stream: int = Field(default=0, ge=0)
    sync_replicas: int = Field(default=0, ge=0)
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    metrics_address: str = "0.0.0.0"

    @property
    def stream_ttl(self) -> int:
        """A stream outlives its job by ten minutes: the result has all of its text, and an empty stream takes 4 KB."""
        return min(self.result_ttl, 600)

    @property
    def blob_ttl(self) -> int:
        """Seconds after which a clip expires at the latest, unless something holds it anew. It is freed before that,
        with the last job or conversation that needs it."""
        return max(self.job_ttl, self.conversation_ttl)


def load_settings(**flags: Any) -> Settings:
    """Settings with the `flags` that are not None. Raises BadRequest naming the first that cannot be used."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"SAILQ_{str(first['loc'][0]).upper()}"
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise BadRequest(f"{name} is {first['input']!r}: {reason}.") from None


def model_name(model: str) -> str:
    """The name under which a model is served: `model` itself, or what its directory is called."""
    if "/" not in model and not Path(model).is_dir():
        return model
    name = Path(model).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128] or "model"
