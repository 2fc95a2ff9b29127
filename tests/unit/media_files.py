"""Clips and images made on the fly, with frames that show their number."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from sailq.shared.media.reading import read_video

Pixels = npt.NDArray[np.uint8]

FRAMES, FPS, HEIGHT, WIDTH = 60, 25, 112, 224
CONTAINERS = {"mp4": "mp4v", "mkv": "mp4v", "avi": "MJPG", "mov": "mp4v"}
SAME_SIZE = {"resized_height": HEIGHT, "resized_width": WIDTH}


def coded(number: int) -> Pixels:
    """A BGR frame that shows its number as eight black or white columns, lowest bit left."""
    bits = np.unpackbits(np.uint8(number), bitorder="little") * np.uint8(255)
    row = np.repeat(bits, WIDTH // 8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))


def number_of(frame: Pixels) -> int:
    columns = frame.mean(axis=(0, 2)).reshape(8, -1)[:, 4:-4].mean(axis=1)
    return int(np.packbits(columns > 127, bitorder="little")[0])


def write_clip(
    path: Path, fourcc: str = "mp4v", count: int = FRAMES, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), FPS, size)
    assert writer.isOpened()
    for number in range(count):
        writer.write(cv2.resize(coded(number), size))
    writer.release()
    return path


def write_h264(path: Path, count: int = FRAMES, gop: int = 12, **container: str) -> Path:
    """With B frames, so that frames are stored in another order than they are shown."""
    with av.open(str(path), "w", options=container) as output:
        codec = {"bf": "2", "g": str(gop), "sc_threshold": "0"}
        stream = output.add_stream("libx264", rate=FPS, options=codec)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(coded(number), format="bgr24")))
        output.mux(stream.encode())
    return path


def write_numbered(path: Path, codec: str, count: int) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(coded(number), format="bgr24")))
        output.mux(stream.encode())
    return path


def sequential(path: Path) -> list[Pixels]:
    """Every frame, decoded one after the other; RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (answer := capture.read())[0]:
        frames.append(np.asarray(answer[1][:, :, ::-1], np.uint8))
    return frames


def frames_of(source: Any, *arguments: Any, **options: Any) -> Pixels:
    return read_video(source, *arguments, **options).frames


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def image(height: int = 56, width: int = 84, channels: int = 3, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


def write_image(path: Path, pixels: npt.NDArray[Any]) -> str:
    assert cv2.imwrite(str(path), pixels)
    return str(path)


def odd_png(path: Path) -> Path:
    """A whole picture of which Pillow warns: its chunk of animations counts no frame."""
    chunk = b"acTL" + bytes(8)
    data = Path(write_image(path, image())).read_bytes()
    path.write_bytes(data[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    return path
