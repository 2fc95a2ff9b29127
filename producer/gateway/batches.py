"""The Batches of OpenAI's API in a folder, which several gateways may share.

A batch is `ID.json`, its record; `ID.rows`, the rows so far; `ID.lock`, whose lock the gateway holds that runs it; and
`ID.cancel` if it is to be cancelled. Only the gateway with the lock changes a record, so no two changes meet.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import durable
from ..openai_api.errors import ApiError
from .files import LIFETIME, full_folder

MOST_UNFINISHED = 1000
"""The most unfinished batches of all keys together."""
WINDOW_SECONDS = 86_400
"""OpenAI's completion_window of 24h."""
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_LEFT_SECONDS = 3600.0
_ID = re.compile(r"batch_[0-9a-f]{32}")
_log = logging.getLogger("sailq.gateway")
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True)
class Batch:
    """The record of a batch.

    Attributes:
        owner: name of the API key that it belongs to.
        max_queued: most of its requests that may wait or run at a time, or None: no limit of the key.
        lifetime: seconds that its output files are kept.
        created: seconds since the epoch.
        times: by status, when the batch got it.
        counts: requests: total, completed, failed.
        errors: why it failed, as OpenAI's batch errors.
    """

    id: str
    owner: str
    input_file_id: str
    endpoint: str
    metadata: Mapping[str, str] | None
    lifetime: int
    created: float
    max_queued: int | None = None
    status: str = "validating"
    times: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] | None = None

    @property
    def expires(self) -> float:
        return self.created + WINDOW_SECONDS

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def become(self, status: str, at: float | None = None, **fields: Any) -> Batch:
        """This batch with another status since `at`, by default now."""
        return replace(self, status=status, times={**self.times, status: at or time.time()}, **fields)

    def as_json(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        times = {f"{status}_at": int(self.times[status]) if status in self.times else None for status in _TIMES}
        errors = None if self.errors is None else {"object": "list", "data": self.errors}
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "errors": errors,
            "input_file_id": self.input_file_id, "completion_window": "24h", "status": self.status,
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
            "created_at": int(self.created), "expires_at": int(self.expires), **times,
            "request_counts": dict(self.counts), "metadata": self.metadata,
        }


class BatchStore:
    """The batches in a folder. Safe to use from several threads and processes.

    Methods that take an owner raise ApiError: 404 for a batch that does not exist or that belongs to another owner.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: made if it is missing. Only this user can read it. Raises OSError."""
        self._folder = folder / "batches"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._final: dict[str, Batch] = {}

    def create(
        self, owner: str, input_file_id: str, endpoint: str, metadata: Mapping[str, str] | None = None,
        lifetime: int = LIFETIME, max_queued: int | None = None,
    ) -> Batch:
        """A new batch. Raises ApiError: 429 if there are too many, 507 if the disk is full."""
        if len(self.unfinished()) >= MOST_UNFINISHED:
            raise ApiError(429, f"{MOST_UNFINISHED} batches wait or run already.", code="too_many_batches",
                           type="rate_limit_error", headers={"Retry-After": "60"})
        batch = Batch(
            f"batch_{secrets.token_hex(16)}", owner, input_file_id, endpoint, metadata, lifetime, time.time(),
            max_queued,
        )
        with full_folder():
            self.write(batch)
        return batch

    def get(self, owner: str, id: str) -> Batch:
        batch = self.read(id) if _ID.fullmatch(id) else None
        if batch is None or batch.owner != owner:
            raise ApiError(404, "There is no such batch.", code="batch_not_found", param="id")
        return batch

    def all(self, owner: str) -> list[Batch]:
        """The batches of an owner, the newest first."""
        found = [batch for batch in self._all() if batch.owner == owner]
        return sorted(found, key=lambda batch: (batch.created, batch.id), reverse=True)

    def cancel(self, owner: str, id: str) -> Batch:
        """Has a batch cancelled by the gateway that runs it. Raises ApiError (409) for a batch that has ended."""
        batch = self.get(owner, id)
        if batch.is_final:
            raise ApiError(409, f"The batch is {batch.status}: it cannot be cancelled.", code="batch_ended")
        with full_folder():
            self._path(id, "cancel").touch(mode=0o600)
        return self.get(owner, id)

    # For the gateway that runs a batch

    def read(self, id: str) -> Batch | None:
        """A batch, whoever its owner is. One that is to be cancelled is cancelling."""
        if id in self._final and self._path(id, "json").exists():
            return self._final[id]
        path = self._path(id, "json")
        asked = self.cancelled_at(id)  # before the record, which may become final meanwhile
        try:
            batch = Batch(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            _log.warning("%s cannot be read, is not the record of a batch, or is of a newer version", path)
            return None
        if batch.is_final:
            self._final[id] = batch
        elif asked is not None:
            return batch.become("cancelling", asked)
        return batch

    def write(self, batch: Batch) -> None:
        """Raises OSError."""
        durable.replace(self._path(batch.id, "json"), json.dumps(asdict(batch)).encode())

    def unfinished(self) -> list[Batch]:
        """All batches that have not ended, the oldest first."""
        return sorted((batch for batch in self._all() if not batch.is_final), key=lambda batch: batch.created)

    def cancelled_at(self, id: str) -> float | None:
        """When the cancellation of a batch was asked for, or None."""
        try:
            return self._path(id, "cancel").stat().st_mtime
        except FileNotFoundError:
            return None

    def rows(self, id: str) -> Path:
        """The file for a batch's rows."""
        return self._path(id, "rows")

    @contextmanager
    def lease(self, id: str) -> Iterator[bool]:
        """Whether this block is the only one, in all gateways, that runs a batch. The kernel ends the lease of a
        process that dies."""
        descriptor = os.open(self._path(id, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def end(self, batch: Batch) -> None:
        """Writes the last record of a batch, and removes its other files. Raises OSError."""
        assert batch.is_final
        self.write(batch)
        self.tidy(batch.id)

    def tidy(self, id: str) -> None:
        """Removes the files that a batch that has ended does not need."""
        self._remove(id, "rows", "cancel", "lock")  # who opened the lock before reads the record after it

    def sweep(self) -> None:
        """Removes batches that ended long ago, and what dead gateways left. Raises OSError."""
        for batch in (batch for batch in self._all() if batch.is_final):
            self.tidy(batch.id)
            if batch.created < time.time() - WINDOW_SECONDS - LIFETIME:
                self._remove(batch.id, "json")
                self._final.pop(batch.id, None)
        durable.remove_drafts(self._folder, _LEFT_SECONDS)

    def _all(self) -> list[Batch]:
        names = [name.removesuffix(".json") for name in os.listdir(self._folder) if name.endswith(".json")]
        return [batch for name in names if _ID.fullmatch(name) and (batch := self.read(name)) is not None]

    def _path(self, id: str, kind: str) -> Path:
        return self._folder / f"{id}.{kind}"

    def _remove(self, id: str, *kinds: str) -> None:
        for kind in kinds:
            with suppress(FileNotFoundError):
                self._path(id, kind).unlink()
