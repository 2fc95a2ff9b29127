"""The settings of producers and workers, and a worker's options. `deploy/settings.md` lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import BadRequest
from .validation import Flag, Identifier, StrictModel, reason


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"SAILQ_{name.upper()}"


def flag(name: str) -> str:
    """The flag of a setting or an option."""
    return f"--{name.replace('_', '-')}"


class Settings(BaseModel):
    """The settings of producers and workers. A setting that is not given is read from its environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, title="Settings")

    redis_url: Annotated[
        str, Flag("URL"),
        Field(description="URL of the server: redis://, rediss://, unix:// or redis+sentinel://. If it has a password, "
              "use the variable: command lines are visible to other users."),
    ] = "redis://127.0.0.1:6379/0"
    model: Annotated[str, Flag("NAME|DIR"), Field(description="Name of a model, or its directory.")] = "sailq-tiny"
    alias: Annotated[
        Identifier | None, Flag("NAME", "none"),
        Field(description="Second name that the worker takes jobs under. Workers with different versions of a model "
              "can share it. The versions need the same context and image sizes."),
    ] = None
    result_ttl: Annotated[int, Field(ge=1, description="Seconds that a result is kept.")] = 86_400
    job_ttl: Annotated[int, Field(ge=1, description="Seconds that a job and its clips wait for a worker.")] = 86_400
    conversation_ttl: Annotated[
        int, Field(ge=1, description="Seconds that a conversation and its clips are kept after its last turn.")
    ] = 86_400
    max_queued: Annotated[
        int, Field(ge=1, description="Maximum number of waiting jobs per model. Further jobs are refused or wait.")
    ] = 10_000
    max_blob_bytes: Annotated[
        int,
        Field(ge=1, description="Maximum bytes of clips on the server. Further clips are refused or wait. Workers hold "
              "the clips of ended jobs for an archive while all clips take less than half of it."),
    ] = 2 * 2**30
    results_stream: Annotated[
        int, Flag("N"),
        Field(ge=0, description="Maximum number of results in `sailq:results`, the stream of ended jobs. Jobs are "
              "added once a reader has created it, as `sailq archive` does; 0 means never."),
    ] = 10_000
    sync_replicas: Annotated[
        int, Flag("N"),
        Field(ge=0, description="Number of replicas that must confirm each submission and each result; 0 means none."),
    ] = 0
    metrics_port: Annotated[
        int, Flag("PORT"),
        Field(ge=0, le=65_535, description="Port for the worker's Prometheus metrics. Workers on one machine need "
              "different ports; 0 means no metrics."),
    ] = 0
    metrics_address: Annotated[
        str, Flag("ADDRESS"), Field(description="Address to bind the metrics port to; 0.0.0.0 means all.")
    ] = "0.0.0.0"

    @model_validator(mode="before")
    @classmethod
    def _with_variables(cls, given: dict[str, Any]) -> dict[str, Any]:
        read = {name: os.environ[variable(name)] for name in cls.model_fields if variable(name) in os.environ}
        return {**read, **given}

    @property
    def stream_ttl(self) -> int:
        """Seconds that a stream outlives its newest entry, ten minutes at most: the result has its text, and a stream
        takes 4 KB."""
        return min(self.result_ttl, 600)

    @property
    def blob_ttl(self) -> int:
        """Seconds after which a clip expires unless its hold is renewed. It is freed earlier, with the last job or
        conversation that needs it."""
        return max(self.job_ttl, self.conversation_ttl)


class WorkerOptions(StrictModel, title="Worker options"):
    """How a worker runs its model."""

    device: Annotated[
        str, Flag("DEVICE"),
        Field(description="Device that runs the model: cpu, tpu:N (Nth BM1684X) or emulator (that chip's C model)."),
    ] = "cpu"
    bmodel: Annotated[
        Path | None, Flag("FILE", "the one in the model's directory"),
        Field(description="Bmodel to load on the TPU or the emulator."),
    ] = None
    slots: Annotated[
        int | None, Flag("N", "8 on a CPU, the bmodel's own on a TPU"),
        Field(ge=1, le=256, description="Number of answers that are decoded together."),
    ] = None
    threads: Annotated[
        int | None, Flag("N", "chosen for the model"),
        Field(ge=1, le=1024, description="Number of CPU threads for the model."),
    ] = None
    drain_seconds: Annotated[
        float, Flag("SECONDS"),
        Field(ge=0, le=86_400, description="Seconds that running jobs get after SIGTERM. Jobs that do not finish "
              "return to the queue."),
    ] = 60.0
    device_timeout: Annotated[
        float | None, Flag("SECONDS", "120, on the emulator 3600"),
        Field(ge=0.1, le=86_400, description="Maximum time of one call to the device. If it takes longer, the worker "
              "exits with code 3."),
    ] = None
    vision_cache: Annotated[
        int, Flag("MB"),
        Field(ge=0, le=1 << 20, description="Size of the vision-embedding cache. A cached clip is not encoded again "
              "for the next question."),
    ] = 128


def load_settings(**flags: Any) -> Settings:
    """Settings with the `flags` that are not None. Raises BadRequest naming the first that cannot be used."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        origin = variable(name) if flags.get(name) is None else flag(name)
        raise BadRequest(f"{origin} is {first['input']!r}: {reason(first)}.") from None


def model_name(model: str) -> str:
    """The name under which a model is served: `model` itself, or the name of its directory."""
    if "/" not in model and not Path(model).is_dir():
        return model
    name = Path(model).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128] or "model"
