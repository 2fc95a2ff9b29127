"""Clips of frames that show their number, in every kind of container and codec that FFmpeg's encoders here write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

Pixels = npt.NDArray[np.uint8]
HEIGHT, WIDTH, BLOCK = 120, 160, 40
TICK = Fraction(1, 25)
GOP = 12
LATER = 128
"""Ticks that a clip begins after 0, where it begins later."""


def shows(number: int) -> Pixels:
    """RGB, 120 × 160: twelve blocks, row by row; block k is bright where bit k of the number is set."""
    blocks = np.array([(number >> bit) & 1 for bit in range(12)], np.uint8).reshape(3, 4) * 215 + 20
    grey = np.repeat(np.repeat(blocks, BLOCK, 0), BLOCK, 1)
    return np.ascontiguousarray(np.repeat(grey[:, :, None], 3, 2))


def number_shown(frame: npt.NDArray[np.uint8]) -> int:
    """The number that an upright frame of any size shows. Raises AssertionError for one that shows none."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(12):
        row, column = divmod(bit, 4)
        top, left = (2 * row + 1) * height // 6, (2 * column + 1) * width // 8
        light = float(frame[top - 4 : top + 4, left - 4 : left + 4].mean())
        assert light < 80 or light > 175, f"block {bit} is neither dark nor bright: {light:.0f}"
        number |= int(light > 127) << bit
    return number


@dataclass(frozen=True)
class Kind:
    """One container with one codec, and what it can hold."""

    name: str
    suffix: str
    codec: str
    turns: bool = False
    starts_later: bool = True
    interlaced: bool = False
    varies: bool = True
    pix_fmt: str = "yuv420p"
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()


_X264 = (("bf", "2"), ("x264-params", "open-gop=1:b-pyramid=none"))
_X265 = (("x265-params", "log-level=none:bframes=2:open-gop=1:pools=1:frame-threads=1"), ("preset", "ultrafast"))
_AV1 = (("preset", "12"), ("svtav1-params", "lp=1"))
_VP9 = (("deadline", "realtime"), ("cpu-used", "8"))
_B_FRAMES = (("bf", "2"),)

KINDS = (
    Kind("mp4 h264", "mp4", "libx264", True, True, True, codec_options=_X264),
    Kind("mp4 hevc", "mp4", "libx265", True, codec_options=_X265),
    Kind("mp4 hevc 10 bit", "mp4", "libx265", True, pix_fmt="yuv420p10le", codec_options=_X265),
    Kind("mp4 av1", "mp4", "libsvtav1", True, codec_options=_AV1),
    Kind("mp4 mpeg4", "mp4", "mpeg4", True, True, True, codec_options=_B_FRAMES),
    Kind("mp4 fragments h264", "mp4", "libx264", True, True, True, codec_options=_X264,
         container_options=(("movflags", "frag_keyframe+empty_moov"),)),
    Kind("mov h264", "mov", "libx264", True, True, True, codec_options=_X264),
    Kind("mov mjpeg", "mov", "mjpeg", True, pix_fmt="yuvj420p"),
    Kind("mkv h264", "mkv", "libx264", True, True, True, codec_options=_X264),
    Kind("mkv hevc", "mkv", "libx265", True, codec_options=_X265),
    Kind("mkv mpeg2", "mkv", "mpeg2video", True, True, True, codec_options=_B_FRAMES),
    Kind("mkv live vp8", "mkv", "libvpx", True, codec_options=_VP9, container_options=(("live", "1"),)),
    Kind("webm vp8", "webm", "libvpx", True, codec_options=(*_VP9, ("auto-alt-ref", "1"), ("lag-in-frames", "10"))),
    Kind("webm vp9", "webm", "libvpx-vp9", True, codec_options=_VP9),
    Kind("webm av1", "webm", "libsvtav1", True, codec_options=_AV1),
    # AVI stores no display times: frames that are stored in another order are shown at a constant rate.
    Kind("avi mpeg4", "avi", "mpeg4", False, False, True),
    Kind("avi mpeg4 with B frames", "avi", "mpeg4", False, False, True, varies=False, codec_options=_B_FRAMES),
    Kind("avi mjpeg", "avi", "mjpeg", False, False, pix_fmt="yuvj420p"),
    Kind("avi h264", "avi", "libx264", False, False, True, varies=False, codec_options=_X264),
    Kind("ts h264", "ts", "libx264", False, True, True, codec_options=_X264),
    Kind("ts hevc", "ts", "libx265", codec_options=_X265),
    Kind("ts mpeg2", "ts", "mpeg2video", False, True, True, codec_options=_B_FRAMES),
    Kind("flv h264", "flv", "libx264", False, True, True, codec_options=_X264),
    Kind("flv flv1", "flv", "flv"),
    Kind("mpg mpeg2", "mpg", "mpeg2video", False, True, True, varies=False, codec_options=_B_FRAMES),
    Kind("mpg mpeg1", "mpg", "mpeg1video", False, True, varies=False, codec_options=_B_FRAMES),
    Kind("wmv wmv2", "wmv", "wmv2"),
    Kind("gif gif", "gif", "gif", False, False, pix_fmt="rgb8"),
)

TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Pixels], Pixels]]] = {
    "upright": ((1, 0, 0, 1), lambda frame: frame),
    "90": ((0, 1, -1, 0), lambda frame: np.rot90(frame, 1)),
    "180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "270": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 3)),
    "mirrored": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
}
"""By name: (a, b, c, d) of the display matrix, and what turns a frame that is shown by it back to its pixels."""


@dataclass(frozen=True)
class Variant:
    """One clip of a kind."""

    kind: Kind
    varies: bool = False
    turn: str = "upright"
    later: bool = False
    interlaced: bool = False

    def __str__(self) -> str:
        rate = "variable" if self.varies else "constant"
        scan = "interlaced" if self.interlaced else "progressive"
        return f"{self.kind.name}, {rate}, {self.turn}, {'later' if self.later else 'at 0'}, {scan}"

    def ticks(self, count: int) -> list[int]:
        """When each of `count` frames is shown, in ticks from the first."""
        if not self.varies:
            return list(range(count))
        steps = [(1, 1, 3, 1, 7, 2, 1, 1, 12, 1)[at % 10] for at in range(count - 1)]
        return [sum(steps[:at]) for at in range(count)]


def variants() -> Iterator[Variant]:
    """Every combination that a container can hold."""
    for kind in KINDS:
        for varies in (False, True)[: 1 + kind.varies]:
            for turn in list(TURNS)[: None if kind.turns else 1]:
                for later in (False, True)[: 1 + kind.starts_later]:
                    for interlaced in (False, True)[: 1 + kind.interlaced]:
                        yield Variant(kind, varies, turn, later, interlaced)


def write(path: Path, variant: Variant, count: int = 30) -> Path:
    """The clip of a variant, frame n showing n."""
    return write_at(path, variant, variant.ticks(count))


def write_at(path: Path, variant: Variant, ticks: Sequence[int]) -> Path:
    kind = variant.kind
    with _scheduled_as_before(), av.open(str(path), "w", options=dict(kind.container_options)) as output:
        options = {"g": str(GOP), **dict(kind.codec_options)}
        if variant.interlaced:
            options |= {"flags": "+ildct+ilme"}
            if kind.codec == "libx264":
                options["x264-params"] += ":tff=1"
        stream = output.add_stream(kind.codec, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, kind.pix_fmt
        stream.codec_context.time_base = TICK
        stream.codec_context.thread_count = 1
        if variant.turn != "upright":
            a, b, c, d = (65536 * one for one in TURNS[variant.turn][0])
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 2**30))
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(shows(number), format="rgb24").reformat(format=kind.pix_fmt, threads=1)
            frame.pts, frame.time_base = tick + LATER * variant.later, TICK
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """Restores the thread's scheduling. Run as root, SVT-AV1 makes the thread that opens its encoder a real-time thread
    (`svt_create_thread`). Processes started by that thread inherit this, and starve all others."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
