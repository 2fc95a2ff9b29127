"""What can be set, with its default. Each field is read from `SAILQ_<NAME>`; a command's flag comes before it."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Both sides' settings. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SAILQ_", frozen=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:// URL of the server")
    model: str = Field(default="sailq-tiny", description="a model's name or directory")
    result_ttl: int = Field(default=86_400, ge=1, description="how long results and their streams are kept")
    job_ttl: int = Field(default=86_400, ge=1, description="how long a job and its blobs wait for a worker")
    conversation_ttl: int = Field(default=86_400, ge=1, description="how long a conversation is kept after its last turn")
