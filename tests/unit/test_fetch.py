"""deploy/models/fetch.sh against a real HTTP server that closes connections, sends wrong data, or has no ranges."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/models/fetch.sh"
BMODEL = random.Random(0).randbytes(300_000)


class Mirror(ThreadingHTTPServer):
    """An operator's web server. `cuts`: bytes after which each of the next answers breaks off; 0: at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/models/seen-7b"

    def serve(self, **files: bytes) -> None:
        self.files = {name.replace("_", "."): content for name, content in files.items()}
        sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in self.files.items()]
        self.files["SHA256SUMS"] = "".join(sums).encode()

    def took(self) -> list[tuple[str, int]]:
        """The files that were requested since the last call, each with its first byte; without SHA256SUMS."""
        asked, self.asked = self.asked, []
        return [(name, start) for name, start in asked if name != "SHA256SUMS"]


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        folder, _, name = self.path.rpartition("/")
        content = self.server.files.get(name) if folder == "/models/seen-7b" else None
        if content is None:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.asked.append((name, start))
        sent = content[start:]
        if self.server.cuts and name.endswith(".bmodel"):
            sent = sent[: self.server.cuts.pop(0)]
        self.wfile.write(sent)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    mirror.serve(config_json=b"{}", tokenizer_json=b"[]", seen_bmodel=BMODEL)
    thread = threading.Thread(target=mirror.serve_forever, args=(0.02,))
    thread.start()
    yield mirror
    mirror.shutdown()
    thread.join()
    mirror.server_close()


@pytest.fixture
def nap(tmp_path: Path) -> Path:
    """A PATH with a `sleep` that returns at once, for the script's waits between tries."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sleep").write_text("#!/bin/sh\n")
    (folder / "sleep").chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def path(nap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{nap}:{os.environ['PATH']}")


def fetch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, *arguments, "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_interrupted_download_continues_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [150_000, 50_000, 0]
    done = fetch(tmp_path / "models", mirror.url + "/")
    assert done.returncode == 0, done.stderr
    assert held(tmp_path / "models/seen-7b") == mirror.files
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["seen-7b"]
    starts = [start for name, start in mirror.took() if name == "seen.bmodel"]
    assert starts == [0, 150_000, 200_000, 200_000]
    assert f"{tmp_path}/models/seen-7b" in done.stdout

    assert fetch(tmp_path / "models", mirror.url).returncode == 0
    assert mirror.took() == []


def test_a_second_run_continues_where_the_first_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [100_000, *[0] * 5]
    done = fetch(tmp_path, mirror.url)
    assert done.returncode == 1 and " 100000 bytes" in done.stderr
    assert not (tmp_path / "seen-7b").exists()
    mirror.took()
    assert fetch(tmp_path, mirror.url).returncode == 0
    assert mirror.took() == [("seen.bmodel", 100_000)]
    assert held(tmp_path / "seen-7b") == mirror.files


def test_without_ranges_the_file_is_downloaded_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges, mirror.cuts = False, [100_000]
    done = fetch(tmp_path, mirror.url)
    assert done.returncode == 0 and [start for name, start in mirror.took() if name == "seen.bmodel"][0] == 0
    assert held(tmp_path / "seen-7b") == mirror.files


@pytest.mark.parametrize("there", [b"other" + BMODEL[5:100_000], b"x" * len(BMODEL), BMODEL + b"more"])
def test_a_file_with_a_wrong_checksum_never_becomes_the_model(mirror: Mirror, tmp_path: Path, there: bytes) -> None:
    part = tmp_path / "seen-7b.part"
    part.mkdir()
    (part / "seen.bmodel").write_bytes(there)
    first = fetch(tmp_path, mirror.url)
    if len(there) < len(BMODEL):  # nothing shows that its first bytes are of another file
        assert first.returncode == 1 and "seen.bmodel" in first.stderr and "SHA256SUMS" in first.stderr
        assert not (tmp_path / "seen-7b").exists()
        first = fetch(tmp_path, mirror.url)
    assert first.returncode == 0, first.stderr
    assert held(tmp_path / "seen-7b") == mirror.files


def test_a_new_model_of_the_same_name_replaces_the_old_one(mirror: Mirror, tmp_path: Path) -> None:
    assert fetch(tmp_path, mirror.url).returncode == 0
    mirror.serve(config_json=b"{}", newer_bmodel=BMODEL[::-1])
    assert fetch(tmp_path, mirror.url).returncode == 0
    assert held(tmp_path / "seen-7b") == mirror.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "seen-7b"]


def test_a_disk_that_is_too_small_is_found_before_the_download(mirror: Mirror, nap: Path, tmp_path: Path) -> None:
    mirror.serve(config_json=b"{}", seen_bmodel=BMODEL * 10)
    (nap / "df").write_text("#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 1 1 104000\\n'\n")
    (nap / "df").chmod(0o755)
    done = fetch(tmp_path, mirror.url)
    assert done.returncode == 1 and " 3 MB" in done.stderr and " 101 MB " in done.stderr
    assert mirror.took() == []


@pytest.mark.parametrize(
    "line", ["<html>", "0" * 64 + "  ../../etc/passwd", "0" * 64 + "  a/b", "0" * 63 + "  a", "0" * 64 + "  .ssh"]
)
def test_checksums_of_files_in_other_folders_are_refused(mirror: Mirror, tmp_path: Path, line: str) -> None:
    mirror.files["SHA256SUMS"] += f"{line}\n".encode()
    done = fetch(tmp_path, mirror.url)
    assert done.returncode == 1 and "SHA256SUMS" in done.stderr
    assert mirror.took() == []


def test_a_folder_without_sums_or_without_a_model_is_named(mirror: Mirror, tmp_path: Path) -> None:
    mirror.serve(readme_md=b"")
    done = fetch(tmp_path, mirror.url)
    assert done.returncode == 1 and "config.json" in done.stderr
    del mirror.files["SHA256SUMS"]
    done = fetch(tmp_path, mirror.url.replace("//", "//me:secret@"))
    assert done.returncode == 1 and "sha256sum * > SHA256SUMS" in done.stderr and "secret" not in done.stderr


def test_two_downloads_at_once_do_not_collide(mirror: Mirror, tmp_path: Path) -> None:
    part = tmp_path / "seen-7b.part"
    part.mkdir()
    lock = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fetch(tmp_path, mirror.url).returncode == 1 and mirror.took() == []
    finally:
        os.close(lock)


@pytest.mark.parametrize("arguments", [(), ("seen-7b",), ("ftp://a/b",), ("--fast",), ("http://a/b", "http://a/c")])
def test_a_usage_error_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = fetch(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("fetch.sh: ")
