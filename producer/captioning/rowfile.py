"""The file of a batch's rows. Rows are appended as they arrive, and sorted into the order of the input at the end.

If the process dies, every line is complete but perhaps the last one, which the next run ignores. The file is locked
while a run has it open, and the kernel releases the lock when the process ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from sailq.shared.errors import BadRequest, SailqError

from ..durable import sync, sync_folder
from .names import for_terminal

R = TypeVar("R")


@dataclass(frozen=True)
class Form(Generic[R]):
    """What the rows of a file look like.

    Attributes:
        start: the first bytes of each line.
        read: the row in a complete line; None if the line is not such a row.
        write: a row's line, with its line end.
        option: the option of the command line that names the file.
    """

    start: bytes
    read: Callable[[bytes], R | None]
    write: Callable[[R], bytes]
    option: str


class RowFile(Generic[R]):
    """The rows of one batch. `rows`: what earlier runs left in it."""

    def __init__(self, path: Path, form: Form[R]) -> None:
        """Raises BadRequest for a file that another run has open, that is not such JSONL, or that cannot be written."""
        self._form = form
        self._name = for_terminal(str(path))
        self._path = Path(os.path.realpath(path))  # replaces the target of a link, not the link
        self._drafts = f".sailq-{hashlib.sha256(os.fsencode(self._path.name)).hexdigest()[:8]}-"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise BadRequest(f"{self._name} cannot be used for the rows: {error.strerror}.") from None
        if not os.access(self._path.parent, os.W_OK | os.X_OK, effective_ids=True):
            self.close()
            raise BadRequest(
                f"{self._name} cannot be used for the rows: its folder is not writable, so no new file can replace it."
            )
        try:
            self.rows, self._end, self._missing = self._read(self._file.readall())
        except OSError as error:
            self.close()
            raise BadRequest(f"{self._name} cannot be used for the rows: {error.strerror}.") from None
        except BadRequest:
            self.close()
            raise
        self._remove_drafts()

    def _open(self) -> FileIO:
        """Opens and locks the file. Opens it again if a run that ended has replaced it meanwhile."""
        while True:
            file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise BadRequest(f"{self._name} cannot be used for the rows: it is not a regular file.")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(file):
                    return file
            except BlockingIOError:
                file.close()
                raise BadRequest(
                    f"Another run is writing to {self._name}: wait until it has ended, or choose another "
                    f"{self._form.option}."
                ) from None
            except BaseException:
                file.close()
                raise
            file.close()

    def _is_current(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _read(self, data: bytes) -> tuple[list[R], int, bytes]:
        """(the rows in `data`, their length in bytes, the line end that the last row lacks)"""
        read, start, another = self._form.read, self._form.start, f"choose another {self._form.option}"
        *lines, last = data.split(b"\n")
        rows = []
        for number, line in enumerate(lines, 1):
            if (row := read(line)) is None:
                raise BadRequest(f"Line {number} of {self._name} is not a row of a batch; {another}.")
            rows.append(row)
        if (row := read(last)) is not None:
            return [*rows, row], len(data), b"\n"
        if _is_json(last) or not (last.startswith(start) or start.startswith(last)):
            raise BadRequest(f"The last line of {self._name} is not a row of a batch; {another}.")
        return rows, len(data) - len(last), b""  # a run died while it wrote this line

    def append(self, row: R) -> None:
        """Appends a row. Raises SailqError if it cannot be written; the file then keeps its earlier rows."""
        line = self._missing + self._form.write(row)
        left = memoryview(line)
        try:
            self._cut()  # removes the incomplete line of a run that died
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._cut()
            raise SailqError(f"{self._name} cannot be written: {error.strerror}.") from None
        self._end += len(line)
        self._missing = b""

    def _cut(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def finish(self, rows: Iterable[R]) -> None:
        """Replaces the file's contents with `rows`, atomically, and closes it. Raises SailqError if it cannot."""
        draft: Path | None = None
        try:
            descriptor, name = tempfile.mkstemp(".draft", self._drafts, self._path.parent)  # a name that no file has
            draft = Path(name)
            with open(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # see _remove_drafts
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
                file.writelines(map(self._form.write, rows))
                file.flush()
                sync(descriptor)
                if self._path.exists() and not self._is_current(self._file):
                    draft = draft.rename(draft.with_suffix(".jsonl"))
                    raise SailqError(f"{self._name} was replaced by another file meanwhile; the rows are in {draft}.")
                draft.replace(self._path)
        except OSError as error:
            if draft is not None:
                with suppress(OSError):
                    draft.unlink()
            there = "has the rows that were written, but cannot be sorted"
            kept = os.path.exists(self._path) and self._is_current(self._file)
            there = there if kept else "was removed and cannot be written again"
            raise SailqError(f"{self._name} {there}: {error.strerror}.") from None
        finally:
            self.close()
        try:
            sync_folder(self._path.parent)
        except OSError as error:
            raise SailqError(
                f"{self._name} is sorted, but a power failure may undo this: its folder cannot be synchronized to the "
                f"disk: {error.strerror}."
            ) from None

    def _remove_drafts(self) -> None:
        """Removes the drafts of runs that were killed in `finish`: the file still has their rows."""
        with suppress(OSError):  # the folder may not be readable
            for path in self._path.parent.iterdir():
                if path.name.startswith(self._drafts) and path.suffix == ".draft":
                    with suppress(OSError), path.open("rb") as draft:
                        fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a run writes it
                        path.unlink()

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


@contextmanager
def finished(finish: Callable[[], None]) -> Iterator[None]:
    """Calls `finish` at the end of the block, also after an error. If both fail, the block's error is raised."""
    try:
        yield
    except Exception:
        with suppress(SailqError):  # the first error is the cause
            finish()
        raise
    except BaseException:
        finish()
        raise
    finish()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
