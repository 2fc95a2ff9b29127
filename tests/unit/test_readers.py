"""Children that read clips: their answers, their deaths, their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from media_files import odd_png, write_clip

from sailq.producer.captioning.readers import Readers
from sailq.shared.errors import BadMedia, SailqError, Unsupported
from sailq.shared.frames import encode_frames
from sailq.shared.media.messages import prepare


def ask(path: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "video", "video": str(path), "nframes": 4}]}]


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "readers import serve" in " ".join(one.cmdline())]


def crash(frames: object) -> tuple[str, bytes]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hoard(frames: object) -> tuple[str, bytes]:
    return "", bytes(64 * 1024**3)


def spin(frames: object) -> tuple[str, bytes]:
    while True:
        pass


def test_a_child_does_not_show_warnings_of_odd_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = odd_png(tmp_path / "odd.png")
    with Readers(1) as pool:
        assert pool.prepare([{"role": "user", "content": [{"type": "image", "image": str(path)}]}]).blobs
    assert not capfd.readouterr().err


def test_a_child_gives_what_this_process_would(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    with Readers(2) as pool:
        assert pool.prepare(ask(path)) == prepare(ask(path))
        with pytest.raises(BadMedia) as caught:
            pool.prepare(ask(tmp_path / "no.mp4"))
        with pytest.raises(BadMedia) as expected:
            prepare(ask(tmp_path / "no.mp4"))
        assert str(caught.value) == str(expected.value)
        with pytest.raises(Unsupported):
            pool.prepare(ask("http://example.com/a.mp4"))
        assert len(children()) == 1  # one child is enough for one clip at a time
    assert not children()


def test_clips_are_read_side_by_side(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    with Readers(2) as pool, ThreadPoolExecutor(2) as threads:
        together = threading.Barrier(2)

        def read(_: int) -> int:
            together.wait(60)
            return len(pool.prepare(ask(path)).blobs)

        assert list(threads.map(read, range(6))) == [1] * 6
        assert len(children()) == 2


def test_a_crash_costs_one_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    with Readers(1) as pool:
        with pytest.raises(BadMedia, match="SIGSEGV"):
            pool.prepare(ask(path), encode=crash)
        assert pool.prepare(ask(path), encode=encode_frames).blobs
        with pytest.raises(BadMedia, match="4 GiB"):
            pool.prepare(ask(path), encode=hoard)
        assert pool.prepare(ask(path)).blobs


def test_a_decoder_that_hangs_costs_one_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    with Readers(1, max_seconds=1.0) as pool:
        with pytest.raises(BadMedia, match="takes more than 1 s of processor time"):
            pool.prepare(ask(path), encode=spin)
        assert pool.prepare(ask(path)).blobs


def test_closing_ends_what_is_being_read(tmp_path: Path, eventually: Callable[..., None]) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    pool = Readers(1)
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(pool.prepare, ask(path), encode=spin)
        eventually(children)
        pool.close()
        with pytest.raises(SailqError):
            future.result(60)
    assert not children()
    with pytest.raises(SailqError):
        pool.prepare(ask(path))


def test_a_child_ends_with_its_parent(tmp_path: Path, eventually: Callable[..., None]) -> None:
    script = f"""if True:
        import os, psutil
        from sailq.producer.captioning.readers import Readers
        pool = Readers(1)
        pool.prepare({ask(write_clip(tmp_path / "clip.mp4"))!r})
        print(psutil.Process().children()[0].pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE)
    eventually(lambda: not psutil.pid_exists(int(done.stdout)))
