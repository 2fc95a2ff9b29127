"""Folders in which some files cannot be read, through `sailq caption`: each of them costs a row, and no other file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pytest
from commands import SECONDS, rows, sailq
from numbered import KINDS, Variant, write
from PIL import Image

from sailq.producer.managed_process import sailq_command
from sailq.shared.media.limits import MAX_PIXELS

KIND = {kind.name: kind for kind in KINDS}


def clip(folder: Path, kind: str = "mp4 h264") -> bytes:
    made = write(folder / f".source.{KIND[kind].suffix}", Variant(KIND[kind]), 50)
    data = made.read_bytes()
    made.unlink()
    return data


def sound(folder: Path) -> bytes:
    path = folder / ".sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    path.unlink()
    return data


def photo(suffix: str, size: tuple[int, int] = (140, 84)) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        path = folder / f".photo.{suffix}"
        Image.linear_gradient("L").convert("RGB").resize(size).save(path)
        data = path.read_bytes()
        path.unlink()
        return data

    return make


def half(make: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    def cut(folder: Path) -> bytes:
        data = make(folder)
        return data[: len(data) // 2]

    return cut


def huge(folder: Path) -> bytes:
    """A PNG whose header says more pixels than are read."""
    side = int(MAX_PIXELS**0.5) + 1
    path = folder / ".huge.png"
    Image.new("1", (side, side)).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


GOOD: dict[str, Callable[[Path], bytes]] = {
    "clip.ts": lambda folder: clip(folder, "ts h264"),
    "clip.flv": lambda folder: clip(folder, "flv flv1"),
    "clip.mpg": lambda folder: clip(folder, "mpg mpeg2"),
    "clip.gif": lambda folder: clip(folder, "gif gif"),
    "clip.mp4": clip,
    "CLIP 2.MP4": clip,
    **{f"photo.{suffix}": photo(suffix) for suffix in ("heic", "avif", "tif", "gif", "jpg", "webp", "bmp")},
}
BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.mp4": (lambda folder: b"", "The file is empty."),
    "empty.heic": (lambda folder: b"", "The file is empty."),
    "text.mp4": (lambda folder: b"This is no video.\n" * 99, "This is not a video of a known format"),
    "text.jpg": (lambda folder: b"<html>404 Not Found</html>" * 99, "This is not a PNG"),
    "photo.mp4": (photo("jpg"), "This is not a video of a known format"),
    "clip.jpg": (clip, "This is not a PNG"),
    "sound.mp4": (sound, "The file contains no video stream."),
    "half.mp4": (half(clip), "The file has no index (moov): it was cut short"),
    "half.png": (half(photo("png", (1400, 840))), "damaged or cut short"),
    "half.heic": (half(photo("heic")), "damaged or cut short"),
    "zeros.mkv": (lambda folder: bytes(4096), "This is not a video of a known format"),
    "huge.png": (huge, "megapixels"),
}
"""By name: what makes it, and what its row's sentence says."""
LOCKED = os.strerror(errno.EACCES)


@pytest.fixture(scope="module", autouse=True)
def heif() -> None:
    pillow_heif.register_heif_opener()


def test_each_bad_file_costs_its_row_and_each_good_one_has_its_caption(served_url: str, tmp_path: Path) -> None:
    mixed, out = tmp_path / "mixed", tmp_path / "out.jsonl"
    mixed.mkdir()
    for name, make in (*GOOD.items(), *((name, make) for name, (make, _) in BAD.items())):
        (mixed / name).write_bytes(make(mixed))
    done = sailq("caption", mixed, "--nframes", 4, "--max-new-tokens", 4, "--out", out, url=served_url)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    by_name: dict[str, dict[str, Any]] = {os.path.basename(row["source"]): row for row in rows(out)}
    assert set(by_name) == {*GOOD, *BAD} and len(rows(out)) == len(GOOD) + len(BAD)
    for name in GOOD:
        row = by_name[name]
        assert row["error"] is None and row["text"] and row["damaged_frames"] == 0, (name, row)
    for name, (_, said) in BAD.items():
        error = by_name[name]["error"]
        assert (error["code"], by_name[name]["text"], by_name[name]["media"]) == ("bad_media", "", []), (name, error)
        assert error["message"].startswith(str(mixed / name)) and said in error["message"], (name, error)
        assert len(error["message"].splitlines()) == 1 and error["message"].endswith(".")
    again = sailq("caption", mixed, "--nframes", 4, "--max-new-tokens", 4, "--out", out, url=served_url)
    assert again.returncode == 1 and f"resuming: {len(GOOD)} of {len(by_name)}" in again.stderr, again.stderr


def as_bound_by_modes(*arguments: object, url: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of sailq's; the modes of files hold for it and its children, as for any user but root."""
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.getuid() == 0 else []
    return subprocess.run(
        [*without, *sailq_command(*map(str, arguments))], env={**os.environ, "SAILQ_REDIS_URL": url},
        capture_output=True, text=True, timeout=SECONDS,
    )


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A readable clip, an unreadable clip, an unreadable folder, and a folder that can be listed but not entered."""
    folder = tmp_path / "locked"
    for name in ("good.mp4", "secret.mp4", "in/good.mp4", "list/good.mp4", "list/photo.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((photo("jpg") if name.endswith("jpg") else clip)(tmp_path))
    (folder / "secret.mp4").chmod(0)
    (folder / "in").chmod(0)
    (folder / "list").chmod(0o400)
    yield folder
    for name in ("in", "list"):
        (folder / name).chmod(0o700)


def test_unreadable_files_are_named_and_the_rest_is_captioned(served_url: str, locked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", locked, "--nframes", 2, "--max-new-tokens", 4, "--out", out]
    done = as_bound_by_modes(*command, url=served_url)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    by_name = {str(Path(row["source"]).relative_to(locked)): row for row in rows(out)}
    errors = {name: row["error"] and row["error"]["code"] for name, row in by_name.items()}
    assert errors == {
        "good.mp4": None, "secret.mp4": "bad_media", "list/good.mp4": "bad_media", "list/photo.jpg": "bad_media",
    }
    assert by_name["good.mp4"]["text"]
    assert "permission denied" in by_name["secret.mp4"]["error"]["message"]
    assert f"cannot be opened ({LOCKED})" in by_name["list/good.mp4"]["error"]["message"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("left out 1 (")]
    assert str(locked / "in") in line and LOCKED in line
    told = as_bound_by_modes(*command, "--json", url=served_url)
    assert told.returncode == 1
    (left_out,) = json.loads(told.stdout)["left_out"]
    assert left_out["path"] == str(locked / "in") and LOCKED in left_out["reason"]
    for name in ("in", "list"):
        (locked / name).chmod(0o700)
    (locked / "secret.mp4").chmod(0o600)
    done = as_bound_by_modes(*command, url=served_url)
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == 5 and all(row["text"] and row["error"] is None for row in rows(out))


def test_a_single_unreadable_folder_ends_the_command(redis_url: str, locked: Path) -> None:
    for given in (locked / "in", locked / "in" / "*.mp4"):
        done = as_bound_by_modes("caption", given, url=redis_url)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert LOCKED in done.stderr and str(locked / "in") in done.stderr
