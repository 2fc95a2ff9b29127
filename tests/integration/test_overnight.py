"""Unattended batches: a problem costs one sentence or one row, and no row is lost."""

from __future__ import annotations

import codecs
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import SECONDS, invoke, refused, rows
from farm import NullWorker

from sailq.producer.captioning.rowfile import RowFile
from sailq.producer.captioning.rows import CAPTIONS
from sailq.producer.managed_process import sailq_command
from sailq.producer.media_defaults import fill_in
from sailq.shared.errors import BadRequest
from sailq.shared.media.sizing import Options, frame_count

ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


@pytest.fixture
def url(redis_url: str, start_null: Callable[..., NullWorker]) -> str:
    """The URL of a database that a null worker serves."""
    start_null()
    return redis_url


@pytest.fixture
def cam(tmp_path: Path) -> Path:
    """A folder of three pictures."""
    for name in "abc":
        paint(tmp_path / "cam" / f"{name}.png")
    return tmp_path / "cam"


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((56, 56, 3), 99, np.uint8))[1].tobytes())


def question(content: Any = "Hi", **metadata: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": content}], **metadata}, ensure_ascii=False) + "\n"


def process(
    *arguments: object, url: str, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command as a process, whatever its locale is."""
    environment = {**os.environ, "SAILQ_REDIS_URL": url, **(environment or {})}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        [os.fsencode(word) for word in sailq_command(*map(str, arguments))], env=environment, encoding="utf-8",
        errors="surrogateescape", timeout=SECONDS, **{**streams, **options},
    )


# Contents of folders.

def test_skipped_files_are_reported_once_with_count_and_reason(url: str, cam: Path) -> None:
    for number in range(7):
        (cam / f"{number}.doc").touch()
    (cam / "loop").symlink_to(".")
    out = cam / "out.jsonl"
    done = invoke("caption", cam, "--out", out, url=url)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if ".doc" in line]
    assert line.startswith("left out 7 (") and line.endswith("and 2 more")
    assert [Path(row["source"]).name for row in rows(out)] == ["a.png", "b.png", "c.png"]
    done = invoke("caption", cam, "--out", out, "--json", url=url)
    assert len(json.loads(done.stdout)["left_out"]) == 7


def test_an_unreadable_folder_is_reported_with_exit_code_1(url: str, cam: Path) -> None:
    here = os.open(cam, os.O_RDONLY)  # its path is too long, so nobody can read it, not even root
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    done = invoke("caption", cam, url=url)
    assert done.returncode == 1, done.stderr
    assert [json.loads(row)["error"] for row in done.stdout.splitlines()] == [None] * 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("left out 1 (")]
    assert os.strerror(errno.ENAMETOOLONG) in line and str(cam / ("d" * 250)) in line


# Names.

@pytest.mark.proof
def test_a_name_that_is_not_utf_8_in_rows_report_and_log(url: str, cam: Path, tmp_path: Path) -> None:
    for name in (b"\xc7\xb0\xc3\xc5.png", b"\xc7\xb0\xc3\xc5.mp4"):
        shutil.copy(cam / "a.png", os.fsdecode(os.fsencode(cam) + b"/" + name))
    Path(os.fsdecode(os.fsencode(cam) + b"/\xc7\xb0\xc3\xc5.mp4")).write_bytes(b"")
    (cam / "\x1b[2J\n.png").write_bytes(b"")
    out, report = tmp_path / "out.jsonl", tmp_path / "report.html"
    command = ["caption", cam, "--out", out, "--report", report]
    first = process(*command, url=url)
    assert first.returncode == 1 and "Traceback" not in first.stderr and "\x1b" not in first.stderr, first.stderr
    text = out.read_bytes().decode()  # whole rows are valid UTF-8
    found = {Path(row["source"]).name: row for row in map(json.loads, text.splitlines())}
    assert len(found) == 6
    assert found["ǰ\\xc3\\xc5.png"]["error"] is None and found["ǰ\\xc3\\xc5.mp4"]["error"]["code"] == "bad_media"
    assert "ǰ\\xc3\\xc5.png" in report.read_bytes().decode() and "ǰ\\xc3\\xc5.mp4" in first.stderr
    second = process(*command, url=url)
    assert "resuming: 4 of 6" in second.stderr
    jobs = {name: row["job"] for name, row in found.items()}
    assert {Path(row["source"]).name: row["job"] for row in rows(out)} == jobs


# Disks, pipes and terminals.

@pytest.mark.proof
def test_stdout_on_a_full_disk(url: str, cam: Path) -> None:
    with open("/dev/full", "w") as full:
        done = process("caption", cam, url=url, stdout=full)
    assert (done.returncode, done.stderr) == (1, f"sailq: The output cannot be written: {os.strerror(errno.ENOSPC)}.\n")


@pytest.mark.proof
def test_rows_on_a_full_disk(url: str, cam: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert invoke("caption", cam / "a.png", cam / "gone.png", "--out", tmp_path / "one", url=url).returncode == 1
    size = (tmp_path / "one").stat().st_size
    done = process(
        "caption", cam, "--out", out, "--window", 1, url=url,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"sailq: {out} ") and os.strerror(errno.EFBIG) in done.stderr
    kept = rows(out)
    assert 1 <= len(kept) < 3
    assert process("caption", cam, "--out", out, url=url).returncode == 0
    assert rows(out)[: len(kept)] == kept and len(rows(out)) == 3


@pytest.mark.proof
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_closed_pipe(url: str, cam: Path, flags: list[str]) -> None:
    nobody, pipe = os.pipe()
    os.close(nobody)
    try:
        done = process("caption", cam, *flags, url=url, stdout=pipe)
    finally:
        os.close(pipe)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1) and "pipe" in done.stderr


@pytest.mark.proof
@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_a_closed_stdout_ends_a_batch_and_not_one_with_a_file(
    url: str, cam: Path, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = process("caption", cam, url=url, preexec_fn=close)
    assert done.returncode == 1 and done.stdout == ""
    assert 2 in closed or done.stderr == f"sailq: The output cannot be written: {os.strerror(errno.EBADF)}.\n"
    done = process("caption", cam, "--out", tmp_path / "out.jsonl", url=url, preexec_fn=close)
    assert done.returncode == 0 and len(rows(tmp_path / "out.jsonl")) == 3


@pytest.mark.proof
def test_with_a_closed_stderr_no_note_goes_into_the_rows(url: str, cam: Path) -> None:
    done = process("caption", cam, url=url, preexec_fn=lambda: os.close(2))
    assert done.returncode == 0 and len([json.loads(line) for line in done.stdout.splitlines()]) == 3


@pytest.mark.parametrize("name", ["--report", "--out"])
def test_a_file_of_the_batch_is_never_overwritten(url: str, cam: Path, name: str) -> None:
    source, before = cam / "rows.jsonl", (cam / "a.png").read_bytes()
    source.write_text(question([{"type": "image", "image": "a.png"}]))
    for arguments in ([cam, name, cam / "a.png"], ["--messages", source, name, source],
                      ["--messages", source, name, cam / "a.png"]):
        done = invoke("caption", *arguments, url=url)
        assert isinstance(done.error, BadRequest) and "is a file of this batch" in str(done.error)
    assert (cam / "a.png").read_bytes() == before and len(source.read_text().splitlines()) == 1


@pytest.mark.proof
def test_an_ascii_terminal_shows_rows_and_answers(served_url: str, url: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(question("Hi", camera="前门") + question([{"type": "image", "image": "前.png"}]))
    done = process("caption", "--messages", source, url=url, environment=ASCII)
    said = {row["index"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1 and done.stdout.isascii() and "Traceback" not in done.stderr, done.stderr
    assert said[0]["metadata"] == {"camera": "前门"} and said[1]["source"] == "前.png"
    done = process("ask", "--prompt", "请说:你好", "--max-new-tokens", 8, url=served_url, environment=ASCII)
    assert done.returncode == 0 and done.stdout.isascii() and "Traceback" not in done.stderr, done.stderr


def test_non_ascii_characters_are_escaped_and_reported_once() -> None:
    code = "from sailq.shared import main; main._escape_what_cannot_be_shown(); print('前'); print('é')"
    done = subprocess.run(
        [*sailq_command()[:1], "-c", code], env={**os.environ, **ASCII}, capture_output=True, text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "\\u524d\n\\xe9\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("sailq: ")


# Rows in and out.

@pytest.mark.parametrize("arguments", [["-"], ["--messages", "-"]])
def test_rows_from_stdin(url: str, cam: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(cam)
    done = invoke("caption", *arguments, url=url, stdin=question([{"type": "image", "image": "a.png"}]) + question("x"))
    assert done.returncode == 0, done.stderr
    said = sorted(map(json.loads, done.stdout.splitlines()), key=lambda row: row["index"])
    assert [row["source"] for row in said] == ["a.png", "stdin:2"]


def test_stdin_beside_files_and_broken_stdin() -> None:
    refused(invoke("caption", "--messages", "-", stdin="{broken"), "bad_request", "Line 1 of standard input")
    refused(invoke("caption", "-", stdin=""), "bad_request", "standard input")
    refused(invoke("caption", "-", "--prompt", "x", stdin=question()), "bad_request", "--prompt")


def test_a_byte_order_mark(url: str, cam: Path) -> None:
    source = cam / "bom.jsonl"
    source.write_bytes(codecs.BOM_UTF8 + question([{"type": "image", "image": "a.png"}], name="bom").encode())
    (row,) = map(json.loads, invoke("caption", "--messages", source, url=url).stdout.splitlines())
    assert row["error"] is None and row["metadata"] == {"name": "bom"}
    out = cam / "out.jsonl"
    assert invoke("caption", "--messages", source, "--out", out, url=url).returncode == 0
    out.write_bytes(codecs.BOM_UTF8 + out.read_bytes())
    done = invoke("caption", "--messages", source, "--out", out, url=url)
    assert done.returncode == 0 and "1 of 1" in done.stderr and len(rows(out)) == 1


def test_a_second_run_on_the_same_file_is_refused(url: str, cam: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = RowFile(out, CAPTIONS)
    refused(invoke("caption", cam, "--out", out, url=url), "bad_request", "Another run", out)
    first.close()
    assert invoke("caption", cam, "--out", out, url=url).returncode == 0


def test_captions_beside_the_clips(url: str, cam: Path) -> None:
    done = invoke("caption", cam, "--sidecar", url=url)
    assert done.returncode == 0, done.stderr
    said = {Path(row["source"]).with_suffix(".txt"): row["text"] for row in map(json.loads, done.stdout.splitlines())}
    assert len(said) == 3 and all(path.read_text() == f"{text}\n" for path, text in said.items())
    again = invoke("caption", cam, "--sidecar", url=url)
    assert again.returncode == 0 and "left out" not in again.stderr
    paint(cam / "a.jpg")
    refused(invoke("caption", cam, "--sidecar", url=url), "bad_request", "a.txt", cam / "a.png")


# How many frames.

@pytest.mark.parametrize(("nframes", "most"), [(16, 16), (15, 64), (64, 10), (8, 9), (2, 768)])
def test_max_frames_limits_nframes_to_the_frames_of_a_clip(nframes: int, most: int) -> None:
    def count(total: int, **own: Any) -> int:
        flags = {"nframes": nframes, "max_frames": most} | ({"fps": own.pop("cli_fps")} if "cli_fps" in own else {})
        messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4", **own}]}]
        ((part,),) = [message["content"] for message in fill_in(messages, flags)]
        return frame_count(Options(**{key: value for key, value in part.items() if key not in {"type", "video"}}),
                           total, 25.0)

    asked = round(nframes / 2) * 2
    for total in (2, 3, 5, 9, 16, 17, 100, 10_000):
        assert count(total) == min(asked, most // 2 * 2, total // 2 * 2)
    assert count(100, nframes=6) == min(6, most // 2 * 2)
    with pytest.raises(BadRequest):
        frame_count(Options(nframes=16), 9, 25.0)  # as before, without --max-frames
    with pytest.raises(BadRequest):
        count(100, cli_fps=1.0)  # as before, both at once


def test_max_frames_of_a_short_clip(served_url: str, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (112, 112))
    for _ in range(6):
        writer.write(np.full((112, 112, 3), 99, np.uint8))
    writer.release()
    command = ["caption", tmp_path / "a.avi", "--nframes", 16, "--max-new-tokens", 4]
    assert invoke(*command, url=served_url).returncode == 1
    capped, six = (json.loads(invoke(*command, *more, url=served_url).stdout) for more in (
        ["--max-frames", 16], ["--nframes", 6]))
    assert capped["error"] is None
    assert capped["metrics"]["usage"]["vision_tokens"] == six["metrics"]["usage"]["vision_tokens"] > 0
