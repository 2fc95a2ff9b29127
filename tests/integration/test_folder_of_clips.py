"""`sailq caption` on a folder like those of camera owners."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import psutil
import pytest
from commands import rows, sailq, start
from numbered import KINDS, TICK, Variant, write, write_at
from PIL import Image

KIND = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    for kind in ("mp4 h264", "mp4 fragments h264", "ts mpeg2", "flv h264", "mpg mpeg2", "wmv wmv2", "gif gif",
                 "avi mjpeg", "webm vp8", "mp4 av1"):
        write(folder / f"{kind.replace(' ', '_')}.{KIND[kind].suffix}", Variant(KIND[kind]), 50)
    write(folder / "interlaced.mp4", Variant(KIND["mp4 h264"], interlaced=True), 50)
    write_at(folder / "vfr.mkv", Variant(KIND["mkv h264"]), [*range(50), *range(50, 1500, 25)])
    os.rename(write(folder / "a.mp4", Variant(KIND["mp4 h264"]), 50), os.fsencode(folder) + b"/\xc7\xb0\xc3\xc5.mp4")
    data = bytearray((folder / "avi_mjpeg.avi").read_bytes())
    with av.open(str(folder / "avi_mjpeg.avi")) as clip:
        packet = [one for one in clip.demux(video=0) if one.size][25]
    at = data.index(bytes(packet))
    data[at : at + packet.size] = bytes(packet.size)
    (folder / "one_bad.avi").write_bytes(data)
    pixels = np.zeros((84, 140, 3), np.uint8)
    pixels[:, :70] = (255, 0, 0)
    pillow_heif.register_heif_opener()
    for suffix in ("heic", "avif", "tif", "gif", "jpg"):
        Image.fromarray(pixels).save(folder / f"photo.{suffix}")
    (folder / "notes.mp4").write_text("This is no video.\n")
    return folder


def test_ctrl_c_ends_the_children(
    disk: Path, redis_url: str, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    batch = start("caption", disk, "--out", tmp_path / "out.jsonl", url=redis_url)
    try:
        eventually(lambda: children(batch.pid), 60)
        readers = children(batch.pid)
        batch.send_signal(signal.SIGINT)
        assert batch.wait(60) == 130
    finally:
        batch.kill()
    assert not [one for one in readers if one.is_running()]


def children(pid: int) -> list[psutil.Process]:
    """The child processes that read clips."""
    return [one for one in psutil.Process(pid).children() if "readers import serve" in " ".join(one.cmdline())]


def test_a_realistic_folder(disk: Path, served_url: str, tmp_path: Path) -> None:
    out, report = tmp_path / "out.jsonl", tmp_path / "report.html"
    done = sailq("caption", disk, "--nframes", 4, "--max-new-tokens", 2, "--out", out, "--report", report,
                 url=served_url)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    by_name: dict[str, dict[str, Any]] = {os.path.basename(row["source"]): row for row in rows(out)}
    assert len(by_name) == len(list(disk.iterdir())) == 20
    failures = {name: row["error"]["code"] for name, row in by_name.items() if row["error"]}
    assert failures == {"notes.mp4": "bad_media"}
    assert {name: row["damaged_frames"] for name, row in by_name.items() if row["damaged_frames"]} == {"one_bad.avi": 1}
    for name, row in by_name.items():
        if name.startswith("photo."):
            assert [medium["type"] for medium in row["media"]] == ["image"] and "times" not in row["media"][0]
        elif name not in failures:
            (medium,) = row["media"]
            last = (1500 - 25 if name == "vfr.mkv" else 49) * TICK
            assert medium["type"] == "video" and medium["frames"] == len(medium["times"]) == 4 and medium["fps"] > 0
            assert medium["times"][0] == 0 and medium["times"][-1] == pytest.approx(float(last), abs=0.002), name
    assert by_name["notes.mp4"]["media"] == []
    page = report.read_text()
    assert "4 frames from 0 s to 59 s" in page and "1 damaged frame<" in page
