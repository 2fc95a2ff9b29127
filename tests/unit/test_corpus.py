"""Every kind of clip in every variant of its container: each selected frame is the right one."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numbered import HEIGHT, KINDS, TICK, TURNS, WIDTH, Variant, number_shown, variants, write

from sailq.shared.media.reading import read_video
from sailq.shared.media.sizing import Options

COUNT = 30
PLAIN = [Variant(kind) for kind in KINDS]
ALL = list(variants())


def expected(variant: Variant, keep: int) -> list[int]:
    """The rule, said once more: numbers spread evenly at a constant rate, else the last frame not after each time."""
    ticks = variant.ticks(COUNT)
    if not variant.varies:
        return [int(number) for number in np.rint(np.linspace(0, COUNT - 1, keep))]
    times = [Fraction(ticks[-1] * place, keep - 1) for place in range(keep)]
    return [max(number for number, tick in enumerate(ticks) if tick <= time) for time in times]


def check(path: Path, variant: Variant) -> None:
    for keep in (2, 8, COUNT):
        size = {"resized_height": 112, "resized_width": 168}
        if variant.turn in {"90", "270"}:
            size = {"resized_height": 168, "resized_width": 112}
        video = read_video(str(path), Options(nframes=keep, **size))
        numbers = [number_shown(TURNS[variant.turn][1](frame)) for frame in video.frames]
        assert numbers == expected(variant, keep)
        ticks = variant.ticks(COUNT)
        assert np.allclose(video.times, [float(ticks[number] * TICK) for number in numbers], atol=0.0011)
        assert video.damaged_frames == 0


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_each_container_and_codec_gives_the_right_frames(tmp_path: Path, variant: Variant) -> None:
    check(write(tmp_path / f"clip.{variant.kind.suffix}", variant, COUNT), variant)


@pytest.mark.proof
def test_every_combination_gives_the_right_frames(tmp_path: Path) -> None:
    wrong = []
    for number, variant in enumerate(ALL):
        path = write(tmp_path / f"{number}.{variant.kind.suffix}", variant, COUNT)
        try:
            check(path, variant)
        except Exception as error:
            wrong.append(f"{variant}: {type(error).__name__}: {str(error)[:200]}")
        path.unlink()
    pairs = len({(one.kind.suffix, one.kind.codec) for one in ALL})
    print(f"figure: {len(ALL)} clips of {pairs} container and codec pairs: {len(ALL) - len(wrong)} right")
    assert len(ALL) >= 300 and pairs >= 14
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="the second authority: apt install ffmpeg")
def test_ffmpeg_sees_the_same_frames_at_the_same_times(tmp_path: Path) -> None:
    """The clips are correct: FFmpeg's own program rotates and times them in the same way."""
    for variant in [one for one in ALL if one.later or not one.kind.starts_later]:
        path = write(tmp_path / f"clip.{variant.kind.suffix}", variant, COUNT)
        ask = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=best_effort_timestamp_time"]
        told = subprocess.run([*ask, "-of", "json", str(path)], capture_output=True, check=True).stdout
        found = json.loads(told)["frames"]
        assert len(found) == COUNT
        # ffprobe has no time for the last frame of some files.
        times = [float(frame["best_effort_timestamp_time"]) for frame in found[:-1]]
        ticks = variant.ticks(COUNT)[:-1]
        assert np.allclose(np.subtract(times, times[0]), [float(tick * TICK) for tick in ticks], atol=0.0011), variant
        raw = ["ffmpeg", "-v", "error", "-i", str(path), "-vsync", "0", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        pixels = np.frombuffer(subprocess.run(raw, capture_output=True, check=True).stdout, np.uint8)
        size = (WIDTH, HEIGHT) if variant.turn in {"90", "270"} else (HEIGHT, WIDTH)
        frames = pixels.reshape(-1, *size, 3)
        assert [number_shown(TURNS[variant.turn][1](frame)) for frame in frames] == list(range(COUNT)), variant
