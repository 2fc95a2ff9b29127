"""Writes files so that a crash or a power failure leaves the old content or the new one, and nothing between."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""The errors of fsync on a file system that does not support it (fsync(2), and FUSE)."""
_DRAFT = ".draft-"


@contextmanager
def draft(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """(a new file without a name of its own, its path); removed at the end of the block unless `publish` named it."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=_DRAFT)
    path = Path(name)
    try:
        with open(descriptor, "wb") as file:
            yield file, path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def publish(file: BinaryIO, path: Path, name: Path) -> None:
    """Gives a draft its name, in place of any file of that name. Raises OSError."""
    file.flush()
    sync(file.fileno())
    path.replace(name)
    sync_folder(name.parent)


def replace(path: Path, data: bytes) -> None:
    """Writes a file anew. Raises OSError."""
    with draft(path.parent) as (file, place):
        file.write(data)
        publish(file, place, path)


def remove_drafts(folder: Path, seconds: float) -> None:
    """Removes the drafts of processes that died: those that nobody has written to for so many seconds."""
    for path in folder.glob(f"{_DRAFT}*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that a new name in it survives a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # a folder may be writable but not readable
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """os.fsync that ignores file systems without support for it; some do not support it for folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
