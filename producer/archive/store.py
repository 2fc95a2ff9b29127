"""The archive's file: captions with their pictures, in SQLite with a full-text index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, SailqError

from ..results import Position
from . import words

_VERSION = 1
_BUSY_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE captions (
    id INTEGER PRIMARY KEY,  -- its time in microseconds since the epoch, made unique
    job TEXT NOT NULL, conversation TEXT NOT NULL, turn INTEGER NOT NULL,
    finished REAL NOT NULL, camera TEXT NOT NULL, source TEXT NOT NULL, question TEXT NOT NULL,
    text TEXT NOT NULL, reasoning TEXT NOT NULL, finish_reason TEXT NOT NULL, error TEXT,
    model TEXT NOT NULL, worker TEXT NOT NULL, device TEXT NOT NULL,
    timings TEXT NOT NULL, usage TEXT NOT NULL, tokens_per_second REAL, metadata TEXT NOT NULL, media TEXT NOT NULL,
    UNIQUE (job, finished));
CREATE INDEX by_camera ON captions (camera, id);
CREATE INDEX by_failure ON captions (id) WHERE error IS NOT NULL;
CREATE VIRTUAL TABLE words USING fts5 (text, tags, content='', tokenize="porter unicode61 remove_diacritics 2");
CREATE TABLE thumbnails (caption INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE clips (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE clip_uses (caption INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (caption, digest)) WITHOUT ROWID;
CREATE INDEX uses_of_clip ON clip_uses (digest);
CREATE TABLE progress (entry TEXT NOT NULL, count INTEGER NOT NULL);
INSERT INTO progress VALUES ('0-0', 0);
"""
_FIRST, _LAST = 0, 2**62
"""All ids are between these two."""
_FAILED = "0"
"""The tag of a caption that has an error. The others have only that of their camera."""
_JSON = {"error", "timings", "usage", "metadata", "media"}


@dataclass(frozen=True)
class Caption:
    """How one job ended.

    Attributes:
        id: its time in microseconds since the epoch, made unique. Captions are ordered by it.
        finished: when it ended, in seconds since the epoch by the server's clock.
        camera, source, question: empty if the job does not say.
        error: `code` and `message`; None if there is an answer.
        timings, usage: as in `Result`.
        media: of each image and video its `type`, `frames`, `height`, `width`, `times` (seconds), `fps` and `blob` (the
            digest of its clip).
    """

    id: int
    job: str
    conversation: str
    turn: int
    finished: float
    camera: str
    source: str
    question: str
    text: str
    reasoning: str
    finish_reason: str
    error: dict[str, str] | None
    model: str
    worker: str
    device: str
    timings: dict[str, float | None]
    usage: dict[str, int]
    tokens_per_second: float | None
    metadata: dict[str, Any]
    media: Sequence[dict[str, Any]]

    @property
    def time(self) -> float:
        """Seconds since the epoch: when the clip was taken, if the job says so, else when it was submitted."""
        return self.id / 1e6


@dataclass(frozen=True)
class Entry:
    """A caption to be stored. `caption.id` may be taken: the next free one is used. `clips`: bytes by digest."""

    caption: Caption
    thumbnail: bytes | None
    clips: dict[str, bytes]


_NAMES = [field.name for field in fields(Caption)]
_COLUMNS = ", ".join(_NAMES)


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
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._open(create)
        except sqlite3.Error as error:
            raise BadRequest(f"{path} cannot be opened as an archive: {error}.") from None

    def _open(self, create: bool) -> None:
        version = self._version()
        if create and version == 0 and not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
            self._db.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if self._version() == 0:  # else another process has just made it
                    for statement in _SCHEMA.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_VERSION}")
            version = self._version()
        if version != _VERSION:
            raise BadRequest(f"{self.path} is not an archive of this version of sailq.")
        # A power failure may undo the last transactions. They are then read again from the server.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
            raise SailqError(f"The archive {self.path} cannot be used: {error}.") from error

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
                    self._add_pictures(caption.id, entry)
            if position is not None:
                self._run("UPDATE progress SET entry = ?, count = ?", (position.entry, position.count))
        return new

    def _insert(self, caption: Caption) -> Caption | None:
        known = "SELECT 1 FROM captions WHERE job = ? AND finished = ?"
        if self._run(known, (caption.job, caption.finished)):
            return None
        free = self._free_id(caption.id)
        values = {**vars(caption), "id": free}
        places = ", ".join("?" * len(_NAMES))
        row = [_stored(name, values[name]) for name in _NAMES]
        self._run(f"INSERT INTO captions ({_COLUMNS}) VALUES ({places})", row)
        self._run("INSERT INTO words (rowid, text, tags) VALUES (?, ?, ?)", (free, *_words(caption)))
        return Caption(**values)

    def _free_id(self, wanted: int) -> int:
        """`wanted`, or an id after all others of the second that follows it: many clips may be of one time."""
        if not self._one("SELECT 1 FROM captions WHERE id = ?", wanted):
            return wanted
        end = wanted + 1_000_000
        while (last := self._one("SELECT max(id) FROM captions WHERE id < ?", end)) == end - 1:
            end += 1_000_000
        return int(last) + 1

    def _add_pictures(self, caption: int, entry: Entry) -> None:
        if entry.thumbnail is not None:
            self._run("INSERT INTO thumbnails VALUES (?, ?)", (caption, entry.thumbnail))
        for digest, data in entry.clips.items():
            self._run("INSERT OR IGNORE INTO clips VALUES (?, ?)", (digest, data))
            self._run("INSERT OR IGNORE INTO clip_uses VALUES (?, ?)", (caption, digest))

    def known_clips(self, digests: Iterable[str]) -> set[str]:
        """Those of these clips that are stored."""
        found = (self._run("SELECT digest FROM clips WHERE digest = ?", (digest,)) for digest in digests)
        return {row[0] for rows in found for row in rows}

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
        return [_read(row) for row in self._run(f"SELECT {_COLUMNS} FROM captions {where}", values)]

    def get(self, caption: int) -> Caption | None:
        return next(iter(self._captions("WHERE id = ?", [caption])), None)

    def thumbnail(self, caption: int) -> bytes | None:
        """A JPEG."""
        return self._bytes("SELECT jpeg FROM thumbnails WHERE caption = ?", caption)

    def clip(self, digest: str) -> bytes | None:
        """The frames of a clip, encoded as on the server (see `shared.frames`)."""
        return self._bytes("SELECT data FROM clips WHERE digest = ?", digest)

    def cameras(self) -> list[str]:
        """The names of all cameras."""
        step = """WITH RECURSIVE names (name) AS (SELECT min(camera) FROM captions UNION ALL
            SELECT (SELECT min(camera) FROM captions WHERE camera > name) FROM names WHERE name IS NOT NULL)
            SELECT name FROM names WHERE name > ''"""
        return [name for (name,) in self._run(step)]

    def _bytes(self, query: str, value: int | str) -> bytes | None:
        found = self._one(query, value)
        return found if isinstance(found, bytes) else None

    def _one(self, query: str, *values: Any) -> Any:
        found = self._run(query, values)
        return found[0][0] if found else None

    def delete(self, captions: Iterable[Caption]) -> None:
        """Deletes captions with their pictures. Call it in a `transaction`."""
        for caption in captions:
            self._run("INSERT INTO words (words, rowid, text, tags) VALUES ('delete', ?, ?, ?)",
                             (caption.id, *_words(caption)))
            self._run("DELETE FROM captions WHERE id = ?", (caption.id,))
            self._run("DELETE FROM thumbnails WHERE caption = ?", (caption.id,))
            self.forget_clips(caption.id)

    def forget_clips(self, caption: int) -> None:
        """Deletes the clips that only this caption shows. Call it in a `transaction`."""
        used = "SELECT digest FROM clip_uses WHERE caption = ?"
        for (digest,) in self._run(used, (caption,)):
            self._run("DELETE FROM clip_uses WHERE caption = ? AND digest = ?", (caption, digest))
            if not self._one("SELECT 1 FROM clip_uses WHERE digest = ?", digest):
                self._run("DELETE FROM clips WHERE digest = ?", (digest,))

    def oldest(self, count: int, until: float = float("inf")) -> list[Caption]:
        """`until`: seconds since the epoch, excluded."""
        return self._captions("WHERE id < ? ORDER BY id LIMIT ?", [_microseconds(until), count])

    def oldest_with_clips(self, count: int) -> list[int]:
        """Ids of captions."""
        return [one for (one,) in self._run("SELECT DISTINCT caption FROM clip_uses LIMIT ?", (count,))]

    @property
    def bytes(self) -> int:
        """What all that is stored takes of the file. The file may be larger."""
        pages, free, size = (self._one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def shrink(self, most_pages: int) -> None:
        """Gives unused space back to the disk."""
        self._run(f"PRAGMA incremental_vacuum({most_pages})")


def _microseconds(seconds: float) -> int:
    return round(max(_FIRST, min(_LAST, seconds * 1e6)))


def _words(caption: Caption) -> tuple[str, str]:
    """What the index gets of a caption: its text and its tags."""
    return words.indexed(caption.text), words.exact(caption.camera) + ("" if caption.error is None else f" {_FAILED}")


def _stored(name: str, value: Any) -> Any:
    if name in _JSON:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value


def _read(row: Sequence[Any]) -> Caption:
    values = dict(zip(_NAMES, row, strict=True))
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Caption(**values)
