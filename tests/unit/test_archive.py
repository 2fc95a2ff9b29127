"""The archive's file: what is found, what is kept, and what is refused."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sailq.producer.archive import words
from sailq.producer.archive.caption import Caption, Entry
from sailq.producer.archive.retention import Retention, delete_camera, trim
from sailq.producer.archive.store import Archive
from sailq.producer.archive.times import read_time
from sailq.producer.results import Position
from sailq.shared.errors import BadRequest

BEGIN = 1_700_000_000


def caption(number: int, text: str = "", camera: str = "", **changes: object) -> Caption:
    made = Caption(
        id=(BEGIN + number) * 1_000_000, job=f"job-{number}", conversation=f"job-{number}", turn=0,
        finished=BEGIN + number + 0.5, camera=camera, source="", question="What is it?", text=text, reasoning="",
        finish_reason="stop", error=None, model="tiny", worker="w", device="cpu", timings={"decode": None},
        usage={"prompt_tokens": 1}, tokens_per_second=None, metadata={}, messages=[], media=[],
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def seen(number: int, digest: str, size: int = 10, **fields: str) -> Entry:
    """An entry with a thumbnail and a clip."""
    medium = {"type": "image", "blob": digest}
    return Entry(caption(number, media=[medium], **fields), b"thumbnail", {digest: b"x" * size})


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "captions.db", create=True) as archive:
        yield archive


def fill(archive: Archive, *captions: Caption) -> None:
    archive.add([Entry(one, None, {}) for one in captions])


def numbers(captions: list[Caption]) -> list[int]:
    return [int(one.time) - BEGIN for one in captions]


TEXTS = [
    "A red car turns left at the gate.", "Two cars wait; nobody walks.", "一辆红色汽车左转。", "两辆车停在门口",
    "A café. Crème brûlée!", "ＲＥＤ ＣＡＲ", "赤い車が左に曲がる", "빨간 자동차가 회전한다", "snake_case e-mail 10:42",
    "A4纸和USB线", "𠮷野家の看板", "person person person",
]


@pytest.mark.parametrize(("asked", "found"), [
    ("car", [5, 1, 0]), ("CARS", [5, 1, 0]), ("turning", [0]), ("red car", [5, 0]), ("car left red", [0]),
    ('"red car"', [5, 0]), ('"car red"', []), ("cafe creme", [4]), ("brûlée", [4]),
    ("红色", [2]), ("汽车", [2]), ("色汽", [2]), ("红色汽车左转", [2]), ("红车", []), ("车", [3, 2]), ("门口", [3]),
    ("红色 左转", [2]), ("口", [3]), ("转", [2]), ("曲がる", [6]), ("자동차", [7]), ("동차", [7]),
    ("A4", [9]), ("A4纸", [9]), ("usb线", [9]), ("𠮷野", [10]), ("snake", [8]), ("e-mail", [8]),
    ("10:42", [8]), ("the gate walks", []),
    ('"', []), ("* OR NEAR(", []), ("text:car", []), ("car -red", [5, 0]),
    ("'; DROP TABLE captions", []), ("😀", []),
])
def test_words_are_found(archive: Archive, asked: str, found: list[int]) -> None:
    fill(archive, *(caption(number, text) for number, text in enumerate(TEXTS)))
    assert numbers(archive.search(asked)) == found


def test_chinese_words_are_found_where_python_finds_them(archive: Archive) -> None:
    """Python's `in` is the other judge: every word of one to five characters, in 300 texts of few characters."""
    random_ = random.Random(3)
    texts = ["".join(random_.choices("红色汽车门，", k=random_.randrange(1, 12))) for _ in range(300)]
    fill(archive, *(caption(number, text) for number, text in enumerate(texts)))
    for _ in range(300):
        word = "".join(random_.choices("红色汽车门", k=random_.randrange(1, 6)))
        found = numbers(archive.search(word, limit=1000))
        assert found == [number for number in range(299, -1, -1) if word in texts[number]], word


def test_each_pair_of_characters_of_a_text_finds_it(archive: Archive) -> None:
    text = "雨天的夜晚，一名穿黄色雨衣的快递员骑着电动车经过路口。"
    fill(archive, caption(0, text), caption(1, "晴天"))
    pairs = [text[at : at + 2] for at in range(len(text) - 1) if text[at : at + 2].isalpha()]
    assert len(pairs) > 20 and all(numbers(archive.search(pair)) == [0] for pair in pairs)


def test_cameras_times_failures_and_pages(archive: Archive) -> None:
    fill(archive, *(
        caption(number, "a dog", ["gate", "yard"][number % 2],
                error={"code": "internal", "message": "No."} if number % 5 == 0 else None)
        for number in range(20)
    ))
    for text in ("", "dog"):
        assert numbers(archive.search(text, camera="gate", limit=3)) == [18, 16, 14]
        assert numbers(archive.search(text, since=BEGIN + 3, until=BEGIN + 5)) == [4, 3]
        assert numbers(archive.search(text, failed=True)) == [15, 10, 5, 0]
        assert numbers(archive.search(text, failed=True, camera="yard", until=BEGIN + 15)) == [5]
        first = archive.search(text, limit=15)
        assert numbers(first + archive.search(text, before=first[-1].id)) == list(range(19, -1, -1))
    assert archive.cameras() == ["gate", "yard"] and archive.search("dog", camera="gat") == []
    assert archive.search(since=float("inf")) == [] and len(archive.search(since=-1e300, until=1e300)) == 20


def test_a_jobs_end_is_stored_once_and_two_captions_of_one_time_both(archive: Archive) -> None:
    one, again = caption(1, "first"), caption(1, "second", finished=BEGIN + 9.0)
    position = Position("5-0", 7)
    assert archive.add([Entry(one, None, {})], position) == [one]
    assert archive.add([Entry(one, None, {}), Entry(again, None, {})]) == [replace(again, id=one.id + 1)]
    assert [found.text for found in archive.search()] == ["second", "first"] and archive.position == position


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a\u202eb", "x" * 1_000_000, "nul\0here", "😀"])
def test_any_text_is_kept_as_it_is(archive: Archive, text: str) -> None:
    kept = caption(0, text, camera=text[:100], metadata={text[:10]: [text[:50], None, 1.5]})
    fill(archive, kept)
    assert archive.search() == [kept] == archive.search(camera=text[:100]) and archive.get(kept.id) == kept


def test_old_captions_are_deleted(archive: Archive) -> None:
    archive.add([seen(number, str(number), text="a cat") for number in range(250)])
    old = caption(-9_000_000, "an old recording", finished=BEGIN + 260.0)
    fill(archive, old)
    now, retention = BEGIN + 300, Retention(seconds=100)
    while trim(archive, retention, now):
        pass
    assert archive.get(old.id) == old  # its job is not old
    archive.delete([old.id])
    assert numbers(archive.search(limit=300)) == list(range(249, 199, -1)) == numbers(archive.search("cat", limit=300))
    assert archive.thumbnail(caption(199).id) is None and archive.clip("199") is None
    assert archive.thumbnail(caption(200).id) == b"thumbnail" and archive.clip("200") == b"x" * 10


def test_beyond_its_size_an_archive_loses_frames_first_then_captions(archive: Archive) -> None:
    archive.add([seen(number, str(number), 20_000, text=f"a cat {number}") for number in range(1000)])
    full, limit = archive.bytes, 4_000_000
    assert full > 20_000_000
    while trim(archive, Retention(bytes=limit), BEGIN):
        pass
    for _ in range(20):
        trim(archive, Retention(bytes=limit), BEGIN)
    archive._run("PRAGMA wal_checkpoint(TRUNCATE)")
    assert 0.5 * limit < archive.bytes <= limit and archive.path.stat().st_size <= 1.2 * archive.bytes
    assert len(archive.search(limit=2000)) == 1000 and archive.clip("0") is None and archive.clip("999") is not None
    while trim(archive, Retention(bytes=200_000), BEGIN):
        pass
    left = numbers(archive.search("cat", limit=2000))
    assert archive.bytes <= 200_000 and 0 < len(left) < 1000 and left[0] == 999 and archive.clip("999") is None


def test_two_processes_delete_the_same_captions(archive: Archive) -> None:
    """Each has listed them before the other deletes them."""
    archive.add([seen(number, str(number), text=f"a cat {number}", camera="gate") for number in range(100)])
    with Archive(archive.path) as other:
        both = [one.of_camera("gate", 100) for one in (archive, other)]
        archive.delete(both[0])
        other.delete(both[1])
        fill(other, caption(500, "a dog"))
        assert numbers(other.search("dog")) == [500] and other.search("cat") == []
        other._run("INSERT INTO words (words) VALUES ('integrity-check')")  # fails if the index is corrupt


def test_what_is_deleted_of_a_camera_is_not_in_the_file(archive: Archive) -> None:
    archive.add([seen(number, str(number), text="an unforgettable Zebra", camera="gate") for number in range(300)])
    fill(archive, caption(1000, "a dog", camera="yard"))
    delete_camera(archive, "gate")
    archive._run("PRAGMA wal_checkpoint(TRUNCATE)")
    content = archive.path.read_bytes().lower().replace(b"thumbnails", b"")
    assert b"dog" in content
    assert not [word for word in (b"zebra", b"unforgett", b"thumbnail") if word in content]


def test_nobody_else_may_read_the_file(archive: Archive) -> None:
    assert {file.stat().st_mode & 0o777 for file in archive.path.parent.glob("captions.db*")} == {0o600}


def test_a_cameras_data_are_deleted_and_a_clip_that_another_shows_is_kept(archive: Archive) -> None:
    archive.add([seen(1, "mine", text="a cat", camera="gate"), seen(2, "ours", text="a cat", camera="gate"),
                 seen(3, "ours", text="a cat", camera="yard")])
    assert delete_camera(archive, "gate") == 2 and delete_camera(archive, "nowhere") == 0
    assert numbers(archive.search("cat")) == [3] == numbers(archive.search())
    assert archive.cameras() == ["yard"] and archive.clip("mine") is None and archive.clip("ours") is not None


@pytest.mark.parametrize("content", [None, b"", b"not a database, but long enough to be one" * 100, "another"])
def test_a_file_that_is_no_archive_is_refused_and_left_alone(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "file.db"
    if isinstance(content, str):
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE mine (x)")
        other.close()
    elif content is not None:
        path.write_bytes(content)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(BadRequest):
        Archive(path)
    if before:
        with pytest.raises(BadRequest):
            Archive(path, create=True)
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 910), ("15m", 100), ("0d", 1000), ("1970-01-01T00:00:05Z", 5), ("1970-01-01T01:00:05.5+01:00", 5.5),
])
def test_times_are_read(text: str, seconds: float) -> None:
    assert read_time(text, 1000) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5y", "-5m", "2026-13-01", "99999-01-01", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        read_time(text, 0)


def test_a_query_is_no_program() -> None:
    assert words.query('a "b c" d"e') == '"a" AND "b c" AND "d e"' and words.query('"" \' *') == ""
    assert words.exact("gate") != words.exact("Gate") and words.exact("gate").isdigit()
