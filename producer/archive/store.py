"""The archive's file: captions with their pictures, in SQLite with a full-text index."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, SailqError

from ..captioning.names import as_text
from ..results import Position
from . import words
from .caption import COLUMNS, NAME_CHARACTERS, Caption, Entry, from_row, to_row

_APPLICATION, _VERSION = 0x5361696C, 1  # "Sail"
_BUSY_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE captions (
    id INTEGER PRIMARY KEY,  -- its time in microseconds since the epoch, made unique
    job TEXT NOT NULL, conversation TEXT NOT NULL, turn INTEGER NOT NULL,
    finished REAL NOT NULL, camera TEXT NOT NULL, source TEXT NOT NULL, question TEXT NOT NULL,
    text TEXT NOT NULL, reasoning TEXT NOT NULL, finish_reason TEXT NOT NULL, error TEXT,
    model TEXT NOT NULL, worker TEXT NOT NULL, device TEXT NOT NULL,
    timings TEXT NOT NULL, usage TEXT NOT NULL, tokens_per_second REAL, metadata TEXT NOT NULL,
    messages TEXT NOT NULL, media TEXT NOT NULL,
    UNIQUE (job, finished));
CREATE INDEX by_end ON captions (finished);
CREATE INDEX by_camera ON captions (camera, id);
CREATE INDEX by_failure ON captions (id) WHERE error IS NOT NULL;
CREATE VIRTUAL TABLE words USING fts5 (text, tags, tokenize="porter unicode61 remove_diacritics 2");
CREATE TABLE thumbnails (caption INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE clips (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE clip_uses (
    finished REAL NOT NULL, caption INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (finished, caption, digest)
) WITHOUT ROWID;
CREATE INDEX uses_of_caption ON clip_uses (caption);
CREATE INDEX uses_of_clip ON clip_uses (digest);
CREATE TABLE progress (entry TEXT NOT NULL, count INTEGER NOT NULL);
INSERT INTO progress VALUES ('0-0', 0);
"""
_FIRST, _LAST = 0, 2**62
"""All ids are between these two."""
_FAILED = "0"
"""The tag of a caption that has an error. The others have only that of their camera."""
_CAMERAS = 500
"""The most names of cameras that are listed."""


def files_of(path: Path) -> list[Path]:
    """The files that an archive may consist of: SQLite's, and that of its `WriterLock`."""
    return [path.with_name(path.name + ending) for ending in ("", "-journal", "-wal", "-shm", "-writer")]


class Archive:
    """One connection to an archive's file. Several processes may have it open. Use it from one thread at a time.

    Every method raises SailqError when the file cannot be read or written.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises BadRequest for a file that is not an archive, and that does not exist without `create`."""
        if not create and not path.exists():
            raise BadRequest(f"There is no archive {path}: `sailq archive --file {path}` makes it.")
        self.path = path
        try:
            if create:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # nobody else's to read
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._open(create)
            self._inode = os.stat(path).st_ino
        except OSError as error:
            raise BadRequest(f"{path} cannot be opened as an archive: {error.strerror}.") from None
        except sqlite3.OperationalError as error:
            raise BadRequest(
                f"{path} cannot be opened as an archive: {error}. Its folder must be writable, and its disk not full."
            ) from None
        except sqlite3.Error as error:
            raise BadRequest(f"{path} cannot be opened as an archive: {error}.") from None

    def _open(self, create: bool) -> None:
        version = self._version()
        if create and version == (0, 0) and not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
            self._db.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if self._version() == (0, 0):  # else another process has just made it
                    for statement in _SCHEMA.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._db.execute("PRAGMA wal_checkpoint")  # a copy of the file alone then has the tables
            version = self._version()
        if version != (_APPLICATION, _VERSION):
            raise BadRequest(f"{self.path} is not an archive of this version of sailq.")
        self._db.execute("PRAGMA secure_delete = ON")
        # A power failure may undo the last transactions. Their results are then read again from the server.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _version(self) -> tuple[int, int]:
        """(which program's file it is, the version of its schema)"""
        (application,), (version,) = (
            self._db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        return application, version

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check_in_place(self) -> None:
        """Raises SailqError if the file was removed or replaced: what is written is then lost."""
        try:
            same = os.stat(self.path).st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise SailqError(f"The archive {self.path} was removed or replaced while in use: restart this process.")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            with suppress(SailqError):  # a full disk has already ended the transaction
                self._run("ROLLBACK")
            raise

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows that a statement returns."""
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> SailqError:
        return SailqError(f"The archive {self.path} cannot be used: {error}.")

    @property
    def position(self) -> Position:
        """How far the stream of ended jobs has been archived."""
        ((entry, count),) = self._run("SELECT entry, count FROM progress")
        return Position(entry, count)

    def add(self, entries: Iterable[Entry], position: Position | None = None) -> list[Caption]:
        """Stores captions, and the position behind them, in one transaction. Returns those that are new: a job's end
        that is there already stays as it is."""
        new = []
        with self.transaction():
            for entry in sorted(entries, key=lambda entry: entry.caption.id):  # the index takes ascending ids fastest
                caption = self._insert(entry.caption)
                if caption is not None:
                    new.append(caption)
                    self._add_pictures(caption, entry)
            if position is not None:
                self._run("UPDATE progress SET entry = ?, count = ?", (position.entry, position.count))
        return new

    def _insert(self, caption: Caption) -> Caption | None:
        known = "SELECT 1 FROM captions WHERE job = ? AND finished = ?"
        if self._run(known, (caption.job, caption.finished)):
            return None
        free = self._free_id(caption.id)
        caption = replace(caption, id=free)
        places = ", ".join("?" * len(COLUMNS))
        self._run(f"INSERT INTO captions ({', '.join(COLUMNS)}) VALUES ({places})", to_row(caption))
        tags = words.exact(caption.camera) + ("" if caption.error is None else f" {_FAILED}")
        self._run("INSERT INTO words (rowid, text, tags) VALUES (?, ?, ?)", (free, words.indexed(caption.text), tags))
        return caption

    def _free_id(self, wanted: int) -> int:
        """`wanted`, or an id after all others of the second that follows it: many clips may be of one time."""
        if not self._one("SELECT 1 FROM captions WHERE id = ?", wanted):
            return wanted
        end = wanted + 1_000_000
        while (last := self._one("SELECT max(id) FROM captions WHERE id < ?", end)) == end - 1:
            end += 1_000_000
        return int(last) + 1

    def _add_pictures(self, caption: Caption, entry: Entry) -> None:
        if entry.thumbnail is not None:
            self._run("INSERT INTO thumbnails VALUES (?, ?)", (caption.id, entry.thumbnail))
        for digest, data in entry.clips.items():
            self._run("INSERT OR IGNORE INTO clips VALUES (?, ?)", (digest, data))
            self._run("INSERT OR IGNORE INTO clip_uses VALUES (?, ?, ?)", (caption.finished, caption.id, digest))

    def search(
        self, text: str = "", *, camera: str | None = None, since: float | None = None, until: float | None = None,
        failed: bool = False, before: int | None = None, limit: int = 50,
    ) -> list[Caption]:
        """Captions, the newest first.

        Args:
            text: words that a caption must have, and phrases in quotation marks; empty for all captions.
            camera: only this camera's.
            since, until: seconds since the epoch, `until` excluded.
            failed: only those without an answer.
            before: an id; only captions with a smaller one, for the next page.
        """
        camera = None if camera is None else _named(camera)
        first = _FIRST if since is None else _microseconds(since)
        last = min(_LAST if until is None else _microseconds(until) - 1, _LAST if before is None else before - 1)
        if not text.strip():
            where = "id BETWEEN ? AND ?" + (" AND camera = ?" if camera is not None else "")
            where += " AND error IS NOT NULL" if failed else ""
            chosen = [first, last, *([] if camera is None else [camera])]
            return self._captions(f"WHERE {where} ORDER BY id DESC LIMIT ?", [*chosen, limit])
        wanted = words.query(text)
        if not wanted:
            return []
        tags = [*([] if camera is None else [words.exact(camera)]), *([_FAILED] if failed else [])]
        wanted = " AND ".join([f"text : ({wanted})", *(f"tags : {tag}" for tag in tags)])
        matches = "SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC LIMIT ?"
        return self._captions(f"WHERE id IN ({matches}) ORDER BY id DESC", [wanted, first, last, limit])

    def _captions(self, where: str, values: Sequence[Any]) -> list[Caption]:
        return [from_row(row) for row in self._run(f"SELECT {', '.join(COLUMNS)} FROM captions {where}", values)]

    def get(self, caption: int) -> Caption | None:
        return next(iter(self._captions("WHERE id = ?", [caption])), None)

    def thumbnail(self, caption: int) -> bytes | None:
        """A JPEG."""
        return self._bytes("SELECT jpeg FROM thumbnails WHERE caption = ?", caption)

    def clip(self, digest: str) -> bytes | None:
        """The frames of a clip, encoded as on the server (see `shared.frames`)."""
        return self._bytes("SELECT data FROM clips WHERE digest = ?", digest)

    def cameras(self) -> list[str]:
        """The names of cameras, in alphabetical order; 500 at most."""
        step = """WITH RECURSIVE names (name) AS (SELECT min(camera) FROM captions WHERE camera > '' UNION ALL
            SELECT (SELECT min(camera) FROM captions WHERE camera > name) FROM names WHERE name IS NOT NULL)
            SELECT name FROM names WHERE name IS NOT NULL LIMIT ?"""
        return [name for (name,) in self._run(step, (_CAMERAS,))]

    def _bytes(self, query: str, value: int | str) -> bytes | None:
        found = self._one(query, value)
        return found if isinstance(found, bytes) else None

    def _one(self, query: str, *values: Any) -> Any:
        found = self._run(query, values)
        return found[0][0] if found else None

    def delete(self, captions: Iterable[int]) -> None:
        """Deletes captions with their pictures, by their ids. Another process may have deleted them meanwhile."""
        with self.transaction():
            for caption in captions:
                for statement in ("captions WHERE id", "words WHERE rowid", "thumbnails WHERE caption"):
                    self._run(f"DELETE FROM {statement} = ?", (caption,))
                self._forget_clips(caption)

    def forget_clips(self, captions: Iterable[int]) -> None:
        """Deletes the clips that only these captions show."""
        with self.transaction():
            for caption in captions:
                self._forget_clips(caption)

    def _forget_clips(self, caption: int) -> None:
        used = self._run("SELECT digest FROM clip_uses WHERE caption = ?", (caption,))
        self._run("DELETE FROM clip_uses WHERE caption = ?", (caption,))
        for (digest,) in used:
            if not self._one("SELECT 1 FROM clip_uses WHERE digest = ?", digest):
                self._run("DELETE FROM clips WHERE digest = ?", (digest,))

    def oldest(self, count: int, until: float = float("inf")) -> list[int]:
        """Ids of the captions that ended first. `until`: seconds since the epoch, excluded."""
        ids = "SELECT id FROM captions WHERE finished < ? ORDER BY finished LIMIT ?"
        return [one for (one,) in self._run(ids, (until, count))]

    def oldest_with_clips(self, count: int) -> list[int]:
        """Ids of the captions that ended first among those whose clips are stored."""
        ids = "SELECT caption FROM clip_uses GROUP BY finished, caption ORDER BY finished, caption LIMIT ?"
        return [one for (one,) in self._run(ids, (count,))]

    def of_camera(self, camera: str, count: int) -> list[int]:
        """Ids of captions."""
        ids = "SELECT id FROM captions WHERE camera = ? LIMIT ?"
        return [one for (one,) in self._run(ids, (_named(camera), count))]

    def forget_words(self) -> None:
        """Removes what was deleted from the files: the index keeps deleted words, and the write-ahead log old pages."""
        self._run("INSERT INTO words (words) VALUES ('optimize')")
        self._run("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def bytes(self) -> int:
        """What all that is stored takes of the file. The file may be larger."""
        pages, free, size = self._pages()
        return (pages - free) * size

    def shrink(self, most_pages: int) -> None:
        """Gives unused pages back to the disk if they are over a tenth of the file. New captions use the others."""
        pages, free, _ = self._pages()
        if free > pages // 10:
            try:
                self._db.executescript(f"PRAGMA incremental_vacuum({most_pages})")  # `execute` would free one page
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _pages(self) -> tuple[int, int, int]:
        """(pages of the file, unused ones among them, bytes of a page)"""
        pages, free, size = (self._one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        return pages, free, size


def _named(camera: str) -> str:
    """A camera's name as it is stored. What a person types need not be Unicode."""
    return as_text(camera)[:NAME_CHARACTERS]


def _microseconds(seconds: float) -> int:
    return round(max(_FIRST, min(_LAST, seconds * 1e6)))
