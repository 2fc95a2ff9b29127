"""The Files of OpenAI's API in a folder, which several gateways may share.

A file is `ID`, its content, and `ID.json`, which is written last and makes it visible. Neither changes afterwards.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..durable import draft, publish, remove_drafts, replace
from ..openai_api.batch_input import MAX_BYTES
from ..openai_api.errors import ApiError

LIFETIME = 30 * 86_400
"""Seconds that a file is kept."""
MOST_FILES = 10_000
"""The most files of all keys together."""
_LEFT_SECONDS = 3600.0
"""Age of what a dead gateway left, when it is removed."""
_CHECK_BYTES = 8 * 2**20
"""How often the quota is checked while a file is written."""
_BLOCK = 4096
"""The least space that a file takes."""
_ID = re.compile(r"file-[0-9a-f]{32}")
_log = logging.getLogger("sailq.gateway")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class StoredFile:
    """A file.

    Attributes:
        owner: name of the API key that it belongs to.
        created, expires: seconds since the epoch.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created: float
    expires: float

    def as_json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": int(self.created),
            "expires_at": int(self.expires), "filename": self.filename, "purpose": self.purpose,
            "status": "processed", "status_details": None,
        }


class Upload:
    """A file that is being written."""

    def __init__(self, store: FileStore, file: BinaryIO, place: Path) -> None:
        self._store, self._file, self._place = store, file, place
        self._size, self._checked = 0, 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises ApiError: 413 if the file is too large, 507 if the folder is full."""
        self._size += len(data)
        if self._size > self._store.max_bytes:
            raise ApiError(413, f"The file is larger than {self._store.max_bytes >> 20} MiB.", code="file_too_large",
                           param="file")
        if self._size - self._checked >= _CHECK_BYTES:
            self._checked = self._size
            self._store.check_room()
        with full_folder():
            self._file.write(data)

    def finish(self, owner: str, filename: str, purpose: str, seconds: int = LIFETIME) -> StoredFile:
        """Makes the file visible, for so many seconds. Raises ApiError (507)."""
        name = f"file-{secrets.token_hex(16)}"
        with full_folder():
            self._file.flush()
            self._store.check_room()
            return self._store.publish(self._file, self._place, name, owner, filename, purpose, self._size, seconds)


class FileStore:
    """The files in a folder. Safe to use from several threads and processes.

    Methods raise ApiError: 404 for a file that does not exist or that belongs to another owner.
    """

    def __init__(self, folder: Path, *, quota: int, max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            folder: made if it is missing. Only this user can read it.
            quota: bytes that the folder may have before new files are refused.
            max_bytes: of one file.

        Raises OSError.
        """
        self._folder, self._quota, self.max_bytes = folder / "files", quota, max_bytes
        self._root = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: dict[str, StoredFile] = {}

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """A new file; removed at the end of the block if it is not finished."""
        self.check_room()
        with full_folder(), draft(self._folder) as (file, place):
            yield Upload(self, file, place)

    def put(self, id: str, owner: str, filename: str, purpose: str, parts: Iterable[bytes], seconds: int) -> StoredFile:
        """Writes a file with a given id, in place of an earlier one. The quota does not apply. Raises OSError."""
        with draft(self._folder) as (file, place):
            file.writelines(parts)
            return self.publish(file, place, id, owner, filename, purpose, file.tell(), seconds)

    def publish(
        self, file: BinaryIO, place: Path, id: str, owner: str, filename: str, purpose: str, size: int, seconds: int
    ) -> StoredFile:
        """Gives a draft an id, and writes its record. Raises OSError."""
        now = time.time()
        stored = StoredFile(id, owner, filename, purpose, size, now, now + seconds)
        publish(file, place, self._folder / id)
        replace(self._folder / f"{id}.json", json.dumps(asdict(stored)).encode())
        return stored

    def get(self, owner: str, id: str) -> StoredFile:
        stored = self._read(id) if _ID.fullmatch(id) else None
        if stored is None or stored.owner != owner or stored.expires <= time.time():
            raise ApiError(404, "There is no such file.", code="file_not_found", param="id")
        return stored

    def path(self, file: StoredFile) -> Path:
        """Where the content of a file is."""
        return self._folder / file.id

    def all(self, owner: str) -> list[StoredFile]:
        """The files of an owner, the newest first."""
        now = time.time()
        found = [stored for stored in self._all() if stored.owner == owner and stored.expires > now]
        return sorted(found, key=lambda stored: (stored.created, stored.id), reverse=True)

    def delete(self, owner: str, id: str) -> None:
        self._remove(self.get(owner, id).id)

    def check_room(self) -> None:
        """Raises ApiError (507) if the folder exceeds the quota, or has too many files."""
        sizes = [max(size, _BLOCK) for size in _sizes(self._root)]
        if sum(sizes) > self._quota or len(sizes) > 2 * MOST_FILES:
            raise _no_room()

    def sweep(self) -> None:
        """Removes expired files, and what dead gateways left. Raises OSError."""
        now = time.time()
        for stored in self._all():
            if stored.expires <= now:
                self._remove(stored.id)
        remove_drafts(self._folder, _LEFT_SECONDS)
        for path in self._folder.glob("file-*"):
            with suppress(OSError):
                alone = _ID.fullmatch(path.name) and not (self._folder / f"{path.name}.json").exists()
                if alone and path.stat().st_mtime < now - _LEFT_SECONDS:
                    path.unlink()

    def _all(self) -> list[StoredFile]:
        names = {name.removesuffix(".json") for name in os.listdir(self._folder) if name.endswith(".json")}
        for gone in self._known.keys() - names:
            self._known.pop(gone, None)
        return [stored for name in names if _ID.fullmatch(name) and (stored := self._read(name)) is not None]

    def _read(self, id: str) -> StoredFile | None:
        path = self._folder / f"{id}.json"
        if id in self._known and path.exists():
            return self._known[id]
        try:
            stored = StoredFile(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            _log.warning("%s cannot be read, is not the record of a file, or is of a newer version", path)
            return None
        self._known[id] = stored
        return stored

    def _remove(self, id: str) -> None:
        self._known.pop(id, None)
        for path in (self._folder / f"{id}.json", self._folder / id):
            with suppress(FileNotFoundError):
                path.unlink()


@contextmanager
def full_folder() -> Iterator[None]:
    """Turns the error of a full disk into ApiError (507)."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room() from None


def _no_room() -> ApiError:
    return ApiError(507, "There is no room for more files: delete some, or wait until they expire.",
                    code="insufficient_storage", type="server_error", headers={"x-should-retry": "false"})


def _sizes(folder: Path) -> Iterator[int]:
    """The sizes of all files below a folder."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(Path(entry.path))
                continue
            with suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False).st_size
