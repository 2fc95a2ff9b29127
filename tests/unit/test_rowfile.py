"""Rows in a file: one run at a time, and no row is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from restricted import as_nobody, largest_file

from sailq.producer.captioning import rowfile
from sailq.producer.captioning.names import as_text, for_terminal, from_text
from sailq.producer.captioning.rowfile import RowFile
from sailq.producer.captioning.rows import CAPTIONS
from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.terminal import as_line


def row(index: int, **fields: Any) -> dict[str, Any]:
    return {"index": index, "source": f"{index}.mp4", "error": None, "finish_reason": "stop", "request": "r", **fields}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = RowFile(out, CAPTIONS)
    with pytest.raises(BadRequest, match=r"Another run .*out\.jsonl"):
        RowFile(out, CAPTIONS)
    first.finish([row(0)])
    second = RowFile(out, CAPTIONS)
    assert second.rows == [row(0)]
    with pytest.raises(BadRequest, match="Another run"):
        RowFile(out, CAPTIONS)
    second.close()
    RowFile(out, CAPTIONS).close()


def test_a_run_that_waited_with_the_old_file_open_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    first, opened = RowFile(out, CAPTIONS), os.open

    def open_and_be_late(path: Any, *rest: Any) -> int:
        descriptor = opened(path, *rest)
        monkeypatch.undo()
        first.finish([row(0)])  # replaces the file between the second run's open and its lock
        return descriptor

    monkeypatch.setattr(os, "open", open_and_be_late)
    second = RowFile(out, CAPTIONS)
    assert second.rows == [row(0)]
    second.append(row(1))
    second.close()
    assert lines(out) == [row(0), row(1)]


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out, target = tmp_path / "out.jsonl", tmp_path / "disk" / "rows.jsonl"
    target.touch()
    target.chmod(0o640)
    out.symlink_to(target)
    file = RowFile(out, CAPTIONS)
    with pytest.raises(BadRequest, match="Another run"):
        RowFile(target, CAPTIONS)
    file.finish([row(0)])
    assert out.is_symlink() and lines(target) == [row(0)] and target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["rows.jsonl"]


def test_a_full_disk_loses_no_row_and_no_half_row_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    file = RowFile(out, CAPTIONS)
    file.append(row(0))
    with largest_file(out.stat().st_size + 20):
        with pytest.raises(SailqError, match=r"out\.jsonl cannot be written: File too large"):
            file.append(row(1))
        assert lines(out) == [row(0)]
        with pytest.raises(SailqError, match="has the rows that were written, .* sorted: File too large"):
            file.finish([row(0), row(1)])
    assert lines(out) == [row(0)] and list(tmp_path.iterdir()) == [out]
    RowFile(out, CAPTIONS).close()  # its lock is released


def test_a_full_disk_after_the_file_was_removed(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "out.jsonl", CAPTIONS)
    (tmp_path / "out.jsonl").unlink()
    with largest_file(20), pytest.raises(SailqError, match="was removed and cannot be written again"):
        file.finish([row(0)])


def test_a_folder_that_cannot_be_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(rowfile, "sync_folder", fail)
    file = RowFile(tmp_path / "out.jsonl", CAPTIONS)
    file.append(row(1))
    with pytest.raises(SailqError, match="is sorted, .*Input/output error"):
        file.finish([row(0), row(1)])
    assert lines(tmp_path / "out.jsonl") == [row(0), row(1)]
    RowFile(tmp_path / "out.jsonl", CAPTIONS).close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_fails_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    RowFile(tmp_path / "out.jsonl", CAPTIONS).finish([row(0)])
    assert lines(tmp_path / "out.jsonl") == [row(0)] and os.listdir(tmp_path) == ["out.jsonl"]


def test_a_folder_that_is_writable_but_not_readable(folder: Path) -> None:
    folder.chmod(0o333)
    with as_nobody():
        RowFile(folder / "out.jsonl", CAPTIONS).finish([row(0)])
    folder.chmod(0o755)
    assert lines(folder / "out.jsonl") == [row(0)]


def test_a_file_that_replaced_the_rows_file_stays(tmp_path: Path) -> None:
    """The rows that could not be written to it are kept, too."""
    out = tmp_path / "out.jsonl"
    file = RowFile(out, CAPTIONS)
    out.unlink()
    other = RowFile(out, CAPTIONS)
    other.append(row(5))
    with pytest.raises(SailqError, match=r"another file .*rows are in .*/\.sailq-"):
        file.finish([row(0)])
    other.close()
    (kept,) = tmp_path.glob(".sailq-*.jsonl")
    RowFile(out, CAPTIONS).finish([row(5), row(6)])
    assert (lines(kept), lines(out)) == ([row(0)], [row(5), row(6)])


def test_no_other_file_is_overwritten(tmp_path: Path) -> None:
    before = {name: name.encode() for name in (".out.jsonl.draft", "out.jsonl.draft", ".sailq-1.jsonl")}
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    RowFile(tmp_path / "out.jsonl", CAPTIONS).finish([row(0)])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out.jsonl"])


def test_the_draft_of_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    out, other = tmp_path / "out.jsonl", RowFile(tmp_path / "other.jsonl", CAPTIONS)
    for path in (out, tmp_path / "other.jsonl"):
        child = os.fork()
        if not child:
            rowfile.sync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            (RowFile(out, CAPTIONS) if path == out else other).finish([row(0)])
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list(tmp_path.glob("*.draft"))) == 2
    RowFile(out, CAPTIONS).close()
    assert len(list(tmp_path.glob("*.draft"))) == 1


def test_a_draft_that_another_run_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose file was removed, and one that has begun a new file of that name."""
    out = tmp_path / "out.jsonl"
    file = RowFile(out, CAPTIONS)
    out.unlink()
    with monkeypatch.context() as during:
        during.setattr(rowfile, "sync", lambda _: RowFile(out, CAPTIONS).close())
        with pytest.raises(SailqError, match=r"rows are in .*/\.sailq-"):
            file.finish([row(0)])
    (kept,) = tmp_path.glob(".sailq-*.jsonl")
    assert lines(kept) == [row(0)]


def test_a_file_that_was_removed_comes_back_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    file = RowFile(out, CAPTIONS)
    out.unlink()
    file.finish([row(0)])
    assert lines(out) == [row(0)]


def test_an_incomplete_last_line_is_ignored_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(as_line(row(0)) + "\n" + as_line(row(1))[:30])
    file = RowFile(out, CAPTIONS)
    assert file.rows == [row(0)]
    file.append(row(2))
    file.close()
    assert lines(out) == [row(0), row(2)]


def test_a_last_line_without_a_newline_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    text = as_line(row(0)) + "\n" + as_line(row(1))
    out.write_text(text)
    file = RowFile(out, CAPTIONS)
    assert file.rows == [row(0), row(1)]
    with largest_file(len(text) + 20), pytest.raises(SailqError, match="cannot be written"):
        file.append(row(2))
    assert out.read_text() == text
    file.append(row(2))
    file.append(row(3))
    file.close()
    assert lines(out) == [row(0), row(1), row(2), row(3)]


@pytest.mark.parametrize("last", [as_line(row(1)), as_line(row(1))[:30], as_line(row(1))[:5]])
def test_nothing_is_cut_off_before_a_row_is_written(tmp_path: Path, last: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(as_line(row(0)) + "\n" + last)
    RowFile(out, CAPTIONS).close()  # as if the rows were of another batch
    assert out.read_text() == as_line(row(0)) + "\n" + last


def test_a_complete_last_line_that_is_not_a_row(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(as_line(row(0)) + "\n" + '{"index": 1, "label": "cat"}')
    with pytest.raises(BadRequest, match="last line"):
        RowFile(out, CAPTIONS)
    assert out.read_text().endswith("}")


@pytest.mark.parametrize("fields", [
    {"files": 5}, {"files": [{"path": "a"}]}, {"finish_reason": []}, {"source": 5}, {"source": ["a"]}, {"request": []},
    {"files": [{"path": 5, "size": 1, "mtime": 1}]},
])
def test_a_line_that_is_not_a_row(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "out.jsonl").write_text(as_line(row(0, **fields)) + "\n")
    with pytest.raises(BadRequest, match="Line 1 of .* is not a row"):
        RowFile(tmp_path / "out.jsonl", CAPTIONS)


def test_an_unwritable_folder_is_reported_at_the_start(folder: Path) -> None:
    out = folder / "out.jsonl"
    out.write_text(as_line(row(0)) + "\n")
    out.chmod(0o666)
    folder.chmod(0o555)
    with as_nobody(), pytest.raises(BadRequest, match="its folder is not writable"):
        RowFile(out, CAPTIONS)
    folder.chmod(0o755)
    RowFile(out, CAPTIONS).close()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_path_that_is_not_a_regular_file(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    {"fifo": lambda: os.mkfifo(out), "folder": out.mkdir, "device": lambda: out.symlink_to("/dev/null")}[kind]()
    with pytest.raises(BadRequest, match="cannot be used for the rows"):
        RowFile(out, CAPTIONS)


@pytest.mark.parametrize(("name", "text"), [
    (b"front.mp4", "front.mp4"),
    ("前门.mp4".encode(), "前门.mp4"),
    ("前门.mp4".encode("gbk"), r"ǰ\xc3\xc5.mp4"),  # its first two bytes are valid UTF-8, too
    (rb"\xc7.mp4", r"\xc7.mp4"),
])
def test_names_as_text_and_back(name: bytes, text: str) -> None:
    assert as_text(os.fsdecode(name)) == text
    assert name in map(os.fsencode, from_text(text))


def test_text_that_encodes_no_name() -> None:
    assert as_text("\ud800").encode() == rb"\ud800"
    assert from_text("\udce9")
    assert for_terminal("a\x1b[2J\n.mp4") == r"a\x1b[2J\n.mp4"


def test_a_line_is_escaped_for_the_encoding_of_the_output() -> None:
    assert as_line({"a": "é"}) == '{"a": "é"}'
    assert as_line({"a": "é"}, "ascii") == '{"a": "\\u00e9"}'
    assert as_line({"a": "é"}, "latin-1") == '{"a": "é"}'
