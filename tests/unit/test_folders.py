"""The files of folders and patterns: each folder is read once, and all skipped files are reported."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from restricted import as_nobody

from sailq.producer.captioning import folders, inputs
from sailq.producer.captioning.folders import BROKEN_LINK, NOT_A_FILE, NOT_MEDIA, LeftOut
from sailq.shared.errors import BadRequest

PROMPTS = {"video": "V", "image": "I"}


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *paths: str, left_out: list[LeftOut] | None = None) -> list[str]:
    clips = inputs.from_paths([str(root / path) for path in paths], PROMPTS, left_out)
    return [str(Path(clip.source).relative_to(root)) for clip in clips]


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "segments/a.mkv", "segments/deep/b.mkv", "linked/c.mp4")
    (tmp_path / "linked" / "front").symlink_to("../segments")
    assert found(tmp_path, "linked") == ["linked/c.mp4", "linked/front/a.mkv", "linked/front/deep/b.mkv"]


def test_links_that_form_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "a/1.mp4", "b/2.mp4")
    for link, to in (("a/up", ".."), ("a/self", "."), ("b/back", "../a"), ("b/again", ".."), ("a/it", "it")):
        (tmp_path / link).symlink_to(to)
    assert found(tmp_path, "") == ["a/1.mp4", "b/2.mp4"]
    assert found(tmp_path, "**/*.mp4") == ["a/1.mp4", "b/2.mp4"]
    assert sorted(found(tmp_path, "a")) == ["a/1.mp4", "a/up/b/2.mp4"]


def test_real_folders_are_read_before_links(tmp_path: Path) -> None:
    put(tmp_path, "z/1.mp4")
    (tmp_path / "a").symlink_to("z")
    assert found(tmp_path, "") == ["z/1.mp4"]


def test_a_folder_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "cam/1.mp4", "cam/2.mp4")
    (tmp_path / "other").symlink_to("cam")
    assert found(tmp_path, "cam", "cam/1.mp4", "other", "other/2.mp4", "c*", "**") == ["cam/1.mp4", "cam/2.mp4"]


def test_linked_files_count_as_separate_files(tmp_path: Path) -> None:
    put(tmp_path, "cam/1.mp4")
    (tmp_path / "cam" / "2.mp4").symlink_to("1.mp4")
    assert found(tmp_path, "cam") == ["cam/1.mp4", "cam/2.mp4"]


def test_all_skipped_files_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "cam/1.mp4", "cam/1.txt", "cam/notes.txt", "cam/.hidden.doc")
    os.mkfifo(tmp_path / "cam" / "pipe.mp4")
    (tmp_path / "cam" / "gone.mp4").symlink_to("nowhere")
    left_out: list[LeftOut] = []
    assert found(tmp_path, "cam", "cam", left_out=left_out) == ["cam/1.mp4"]
    told = {Path(one.path).name: one.reason for one in left_out}
    assert told == {"notes.txt": NOT_MEDIA, "pipe.mp4": NOT_A_FILE, "gone.mp4": BROKEN_LINK}
    assert len(left_out) == 3 and not any(one.locked for one in left_out)


def test_an_unreadable_folder_is_reported(folder: Path) -> None:
    folder.chmod(0o755)
    put(folder, "cam/1.mp4", "cam/in/2.mp4")
    (folder / "cam" / "in").chmod(0)
    left_out: list[LeftOut] = []
    with as_nobody():
        assert found(folder, "cam", left_out=left_out) == ["cam/1.mp4"]
        with pytest.raises(BadRequest, match=r"no videos and no images in .*Permission denied"):
            found(folder, "cam/in")
    assert [(one.path, one.locked) for one in left_out] == [(str(folder / "cam" / "in"), True)]
    assert os.strerror(errno.EACCES) in left_out[0].reason


@pytest.mark.parametrize(("pattern", "names", "locked"), [
    ("cam/**/*.mp4", ["cam/1.mp4"], ["cam/in"]),
    ("**", ["cam/1.mp4"], ["cam/in"]),
    ("cam/*/*.mp4", None, ["cam/in"]),
    ("c*/in/2.mp4", None, ["cam/in"]),
    ("cam/*", ["cam/1.mp4"], ["cam/in"]),
    ("cam/*.mp4", ["cam/1.mp4"], []),
    ("*/**/in/**/*.mp4", None, ["cam/in"]),
])
def test_an_unreadable_folder_is_reported_for_patterns(
    folder: Path, pattern: str, names: list[str] | None, locked: list[str]
) -> None:
    folder.chmod(0o755)
    put(folder, "cam/1.mp4", "cam/in/2.mp4")
    (folder / "cam" / "in").chmod(0)
    left_out: list[LeftOut] = []
    with as_nobody():
        if names is None:
            with pytest.raises(BadRequest, match=r"Nothing matches .*: the folder cannot be read: Permission denied"):
                found(folder, pattern, left_out=left_out)
        else:
            assert found(folder, pattern, left_out=left_out) == names
    assert [one.path for one in left_out if one.locked] == [str(folder / name) for name in locked]


@pytest.mark.parametrize(("pattern", "names"), [
    ("**/*.mp4", ["1.mp4", "a/2.mp4", "a/b/3.mp4"]),
    ("a/**/*.mp4", ["a/2.mp4", "a/b/3.mp4"]),
    ("*/**/3.*", ["a/b/3.mp4"]),
    ("**/b", ["a/b"]),
    ("a/**", ["a", "a/2.mp4", "a/b", "a/b/3.mp4", "a/note.txt"]),
    ("*.mp4", ["1.mp4"]),
    ("**/**/?.mp4", ["1.mp4", "a/2.mp4", "a/b/3.mp4"]),
])
def test_patterns(tmp_path: Path, pattern: str, names: list[str]) -> None:
    put(tmp_path, "1.mp4", "a/2.mp4", "a/b/3.mp4", "a/note.txt", "a/.hidden.mp4", ".git/4.mp4")
    assert [str(Path(name).relative_to(tmp_path)) for name in folders.matches(str(tmp_path / pattern))] == names


def test_nothing_matches(tmp_path: Path) -> None:
    put(tmp_path, "empty/notes.txt")
    with pytest.raises(BadRequest, match="no videos and no images"):
        found(tmp_path, "em*")
    with pytest.raises(BadRequest, match="Nothing matches"):
        found(tmp_path, "**/*.mp4")


def test_names_in_the_working_directory_have_no_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cam/1.mp4")
    monkeypatch.chdir(tmp_path)
    assert [clip.source for clip in inputs.from_paths(["."], PROMPTS)] == ["cam/1.mp4"]
    assert [clip.source for clip in inputs.from_paths(["cam/"], PROMPTS)] == ["cam/1.mp4"]
    assert [clip.source for clip in inputs.from_paths(["**/*.mp4"], PROMPTS)] == ["cam/1.mp4"]
