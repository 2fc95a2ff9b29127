"""How fast clips become frames: the reader against OpenCV's, which decodes a clip from its begin to the last frame."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from sailq.shared.media.reading import read_video
from sailq.shared.media.resizing import resize
from sailq.shared.media.sizing import Options, frame_indices, video_size

FPS, SECONDS, LOOP, HEIGHT, WIDTH = 25, 60, 4, 1080, 1920
ROUNDS = 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264, a key frame every 2 s: a moving picture with a camera's grain, four seconds of it fifteen times."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(30, 220, (27, 60, 3), np.uint8), (WIDTH + 500, HEIGHT))
    grain = rng.integers(-6, 7, (HEIGHT + 16, WIDTH + 16, 1), np.int16)
    with av.open(str(path), "w") as output:
        options = {"preset": "superfast", "g": str(2 * FPS), "keyint_min": str(2 * FPS), "sc_threshold": "0"}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        packets = []
        for number in range(LOOP * FPS):
            y, x = rng.integers(0, 16, 2)
            picture = ground[:, 2 * number : 2 * number + WIDTH] + grain[y : y + HEIGHT, x : x + WIDTH]
            packets += stream.encode(av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), "rgb24"))
        packets += stream.encode()
        ticks = round(LOOP / packets[0].time_base)
        whole = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for turn, (data, pts, dts, key) in itertools.product(range(SECONDS // LOOP), whole):
            copy = av.Packet(data)
            copy.pts, copy.dts, copy.time_base = pts + turn * ticks, dts + turn * ticks, packets[0].time_base
            copy.is_keyframe, copy.stream = key, stream
            output.mux(copy)
    return path


def opencv(path: Path) -> Sequence[int]:
    """The reader before this one: `grab` from the begin to the last frame that is kept."""
    capture = cv2.VideoCapture(str(path))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    kept = frame_indices(Options(nframes=8), total, capture.get(cv2.CAP_PROP_FPS))
    size = video_size(HEIGHT, WIDTH, len(kept), Options())
    for number in range(kept[-1] + 1):
        assert capture.grab()
        if number in kept:
            resize(np.asarray(capture.retrieve()[1], np.uint8), *size)
    return kept


def ours(path: Path) -> Sequence[int]:
    return [round(at * FPS) for at in read_video(str(path), Options(nframes=8)).times]


def seconds(read: Callable[[Path], Sequence[int]], path: Path) -> tuple[float, float, Sequence[int]]:
    """(wall, processor of all threads, frames)"""
    began, used = time.perf_counter(), time.process_time()
    kept = read(path)
    return time.perf_counter() - began, time.process_time() - used, kept


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_clips_are_read_at_least_twice_as_fast_as_by_opencv(clip: Path) -> None:
    turns = [(seconds(opencv, clip), seconds(ours, clip)) for _ in range(ROUNDS)]
    assert all(old[2] == new[2] for old, new in turns)
    wall = statistics.median(old[0] / new[0] for old, new in turns)
    used = statistics.median(old[1] / new[1] for old, new in turns)
    clips = statistics.median(1 / new[0] for _, new in turns)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"figure: 1080p H.264, 60 s, 8 frames: {clips:.2f} clips/s, {wall:.1f} × OpenCV's rate by the clock and "
        f"{used:.1f} × by processor time; {memory:.0f} MiB at most"
    )
    assert wall >= 2.0
