"""Every kind of bad file, and the error sentence of each."""

from __future__ import annotations

import errno
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import (
    CONTAINERS,
    FPS,
    HEIGHT,
    SAME_SIZE,
    WIDTH,
    cut,
    image,
    number_of,
    write_clip,
    write_h264,
    write_image,
    write_numbered,
)
from PIL import Image

from sailq.shared.errors import BadMedia, BadRequest, SailqError, TooLong, Unsupported
from sailq.shared.jobs import ModelCard
from sailq.shared.media import images, limits, sources
from sailq.shared.media.reading import read_image, read_video
from sailq.shared.media.sizing import Budget, Options


def text_named_mp4(folder: Path) -> str:
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    return str(folder / "text.mp4")


def no_frames(suffix: str, codec: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / f"none.{suffix}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=FPS)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            output.start_encoding()
        return str(path)

    return make


def unknown_codec(folder: Path) -> str:
    path = write_h264(folder / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    return str(path)


def sound(folder: Path) -> str:
    with av.open(str(folder / "a.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return str(folder / "a.mp4")


def playlist(folder: Path) -> str:
    """It names another file, which must not be opened."""
    clip = write_h264(folder / "other.ts")
    path = folder / "a.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n")
    return str(path)


def noise(folder: Path) -> str:
    """All packets exist, and none can be decoded."""
    path = write_h264(folder / "noise.mp4", movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = random.Random(5).randbytes(len(data) - start)
    path.write_bytes(data)
    return str(path)


def hole(folder: Path) -> Path:
    """The file has its full size, but a part was not downloaded."""
    path = write_h264(folder / "hole.mp4", movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    return path


BAD_CLIPS: dict[str, tuple[Callable[[Path], Any], type[SailqError], str]] = {
    "missing": (lambda folder: str(folder / "no.mp4"), BadMedia, "no such file"),
    "directory": (str, BadMedia, "directory"),
    "device": (lambda _: "/dev/zero", BadMedia, "not a regular file"),
    "empty": (lambda folder: str(cut(write_clip(folder / "0.mp4"), 0)), BadMedia, "is empty"),
    "no name": (lambda _: "a\0b.mp4", BadMedia, "cannot be opened"),
    "long name": (lambda _: "x" * 5000, BadMedia, "cannot be opened"),
    "long URL": (lambda _: "file:///" + "x" * 5000, BadMedia, "cannot be opened"),
    "text": (text_named_mp4, BadMedia, "not a video of a known format"),
    "no moov": (lambda folder: str(cut(write_clip(folder / "a.mp4"), 0.5)), BadMedia, "no index .* cut short"),
    "no moov at all": (lambda folder: str(cut(write_clip(folder / "a.mov"), 0.002)), BadMedia, "no index"),
    "cut mov": (lambda folder: str(cut(write_clip(folder / "a.mov"), 0.9)), BadMedia, "no index .* cut short"),
    "unknown codec": (unknown_codec, BadMedia, r"codec \(zzz1\)"),
    "sound": (sound, BadMedia, "no video stream"),
    "a playlist": (playlist, BadMedia, "not a video of a known format"),
    "noise": (noise, BadMedia, r"No frame .* can be decoded \(codec h264\)"),
    "no frames mp4": (no_frames("mp4", "mpeg4"), BadMedia, "no video stream"),
    "no frames mkv": (no_frames("mkv", "libx264"), BadMedia, "no frames"),
    "no frames avi": (no_frames("avi", "mpeg4"), BadMedia, "no frames"),
    "an image": (lambda folder: write_image(folder / "a.png", image()), BadMedia, "not a video"),
    "thin": (lambda folder: str(write_clip(folder / "a.avi", "MJPG", 4, (4000, 2))), BadMedia, "2000 to 1"),
    "http": (lambda _: "https://example.com/a.mp4", Unsupported, "download it first"),
    "rtsp": (lambda _: "rtsp://camera/1", Unsupported, "download it first"),
    "no images": (lambda _: [], BadMedia, "at least one image"),
    "a list of numbers": (lambda _: [1, 2], BadRequest, "a path"),
    "a number": (lambda _: 5, BadRequest, "int"),
    "unequal images": (
        lambda folder: [write_image(folder / f"{n}.png", image(n, n)) for n in (100, 200)],
        BadMedia,
        "200.png: Its size",
    ),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_a_bad_clip_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    make, error, told = BAD_CLIPS[case]
    source = make(tmp_path)
    with pytest.raises(error, match=told) as caught:
        read_video(source)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    if isinstance(source, str) and len(source) < 200:
        assert message.startswith(source.replace("\0", r"\x00"))


@pytest.mark.parametrize(("read", "name"), [(read_video, "a.mp4"), (read_video, "text.mp4"), (read_image, "a.png")])
def test_a_file_that_disappears_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Any], name: str
) -> None:
    path = tmp_path / name
    if name == "text.mp4":
        text_named_mp4(tmp_path)
    else:
        write_clip(path) if read is read_video else write_image(path, image())

    def look_and_remove(file: Path, mode: int) -> bool:
        file.unlink()
        return True

    monkeypatch.setattr(sources.os, "access", look_and_remove)
    with pytest.raises(BadMedia, match=r"cannot be read \(No such file or directory\)\.$"):
        read(str(path))


def test_lack_of_memory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(images, "_upright", no_memory)
    with pytest.raises(BadMedia, match="not enough memory"):
        read_image(write_image(tmp_path / "a.png", image()))


@pytest.mark.parametrize(("code", "told"), [
    (errno.EIO, "Input/output error"), (errno.ENOMEM, "memory"), (errno.ETIMEDOUT, "more than 300 s"),
    (errno.EINVAL, "not a video of a known format"),
])
def test_a_clip_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        av.error.err_check(-code)

    path = text_named_mp4(tmp_path)
    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(BadMedia, match=told):
        read_video(path)


@pytest.mark.parametrize(
    ("name", "keep"), [("a.mp4", 0.7), ("a.mkv", 0.5), ("a.avi", 0.7), ("a.ts", 0.5), ("a.flv", 0.5), ("a.webm", 0.5)]
)
def test_the_existing_part_of_a_truncated_clip_is_read(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if name == "a.webm":
        write_numbered(path, "libvpx", 60)
    else:
        write_h264(path, **({"movflags": "faststart"} if name == "a.mp4" else {}))
    video = read_video(str(cut(path, keep)), Options(nframes=6, **SAME_SIZE))
    numbers = [number_of(frame) for frame in video.frames]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0 and 10 <= numbers[-1] < 50
    assert [round(time * FPS) for time in video.times] == numbers
    if name == "a.mp4":  # its index counts all 60
        assert 5 < video.damaged_frames < 60 - numbers[-1] + 2


def test_missing_frames_are_replaced_by_the_last_one_before_them(tmp_path: Path) -> None:
    video = read_video(str(hole(tmp_path)), Options(nframes=60, **SAME_SIZE))
    numbers = [number_of(frame) for frame in video.frames]
    whole = numbers.index(numbers[-1]) + 1
    assert numbers[:whole] == list(range(whole)) and set(numbers[whole:]) == {whole - 1} and 5 < whole < 40
    assert video.damaged_frames == 60 - whole


def test_a_clip_of_one_frame_gives_it_twice(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path / "1.avi", "MJPG", 1))
    video = read_video(path)
    assert len(video.frames) == 2 and np.array_equal(*video.frames) and video.times == (0.0, 0.0) and video.fps is None
    with pytest.raises(BadRequest, match="asks? for 8 frames"):
        read_video(path, Options(nframes=8))


def png_header(height: int, width: int) -> bytes:
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + fields + struct.pack(">I", zlib.crc32(fields)) + b"\0\0\0\x40IDAT"


HUGE = {
    "png": png_header(30_000, 30_000),
    "jpg": b"\xff\xd8\xff\xe0\0\4..\xff\xff\xc2\0\x0b\x08" + struct.pack(">HHL", 30_000, 30_000, 0x1011100),
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 30_000, -30_000, 1, 24) + bytes(24),
    "webp": b"RIFF\x1a\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + 2 * (29_999).to_bytes(3, "little"),
    "lossless.webp": b"RIFF\x1a\0\0\0WEBPVP8L\n\0\0\0\x2f" + (0x3FFF << 14 | 0x3FFF).to_bytes(4, "little"),
    "lossy.webp": b"RIFF\x1a\0\0\0WEBPVP8 \n\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383),
}


@pytest.mark.parametrize("name", HUGE)
def test_an_enormous_image_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HUGE[name])
    with pytest.raises(BadMedia, match="more than 100 megapixels"):
        read_image(name, base=tmp_path)


def test_the_limit_of_pixels_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("png", "jpg", "bmp", "webp", "tif", "gif", "heic", "avif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(image(100, 138)).save(path)
        monkeypatch.setattr(limits, "MAX_PIXELS", 100 * 138)
        images.decode(path.read_bytes())
        monkeypatch.setattr(limits, "MAX_PIXELS", 100 * 138 - 1)
        with pytest.raises(BadMedia, match="138 × 100"):
            images.decode(path.read_bytes())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = Path(write_image(tmp_path / f"a.{suffix}", image(200, 300)))
    with pytest.raises(BadMedia, match="a\\."):
        read_image(str(cut(path, keep)))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda folder: write_image(folder / "thin.png", image(4000, 1)), BadMedia, "4000 to 1"),
        (lambda folder: text_named_mp4(folder), BadMedia, "not a PNG"),
        (lambda folder: str(folder / "no.png"), BadMedia, "no such file"),
        (lambda folder: str(folder), BadMedia, "directory"),
        (lambda _: "http://example.com/a.png", Unsupported, "download it first"),
        (lambda _: None, BadRequest, "a path"),
    ],
)
def test_a_bad_image_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], error: type[SailqError], told: str
) -> None:
    with pytest.raises(error, match=told):
        read_image(make(tmp_path))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (Options(nframes=62), BadRequest),
        (Options(nframes=1), BadRequest),
        (Options(nframes=4, fps=2), BadRequest),
        (Options(video_start=10), BadRequest),
        (Options(video_start=1, video_end=1), BadRequest),
        (Options(min_pixels=10**6, max_pixels=784), BadRequest),
    ],
)
def test_options_that_the_clip_cannot_meet_are_refused(
    tmp_path: Path, options: Options, error: type[SailqError]
) -> None:
    write_clip(tmp_path / "clip.mp4")
    with pytest.raises(error, match=r"^clip\.mp4: "):
        read_video("clip.mp4", options, base=tmp_path)


def test_a_model_that_cannot_hold_the_clip_refuses_it(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    card = ModelCard(name="tiny", context=63, min_pixels=784, max_pixels=784 * 64)
    size = {"resized_height": 112, "resized_width": 112}  # 16 tokens a pair
    budget = Budget(card)
    read_video("clip.mp4", Options(nframes=6, **size), base=tmp_path, budget=budget)
    assert budget.tokens == 48
    with pytest.raises(TooLong, match=r"^clip\.mp4: .* 64 vision tokens"):
        read_video("clip.mp4", Options(nframes=2, **size), base=tmp_path, budget=budget)


def test_damaged_bytes_raise_typed_errors_only(tmp_path: Path) -> None:
    rng, refused = random.Random(3), 0
    files = [write_clip(tmp_path / f"a.{suffix}", fourcc, 12) for suffix, fourcc in CONTAINERS.items()]
    files += [Path(write_image(tmp_path / f"a.{kind}", image())) for kind in ("png", "jpg", "bmp", "webp")]
    for path in files:
        whole = path.read_bytes()
        for _ in range(15):
            data = bytearray(whole)
            reach = rng.choice([len(data), 100])
            for _ in range(rng.choice([1, 4, 30])):
                data[rng.randrange(reach)] = rng.randrange(256)
            path.write_bytes(data)
            try:
                (read_video if path.suffix[1:] in CONTAINERS else read_image)(str(path))
            except SailqError:
                refused += 1
    assert refused > 20


def test_bad_files_write_nothing_to_stderr(tmp_path: Path) -> None:
    """In a separate process, because C code writes to stderr without Python."""
    for name, (make, _, _) in BAD_CLIPS.items():
        if name in {"text", "noise", "no moov at all", "no frames mp4", "no frames avi"}:
            (tmp_path / name).mkdir()
            make(tmp_path / name)
    for suffix in ("png", "jpg", "bmp", "webp"):
        data = bytearray(Path(write_image(tmp_path / f"a.{suffix}", image(200, 300))).read_bytes())
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        (tmp_path / f"a.{suffix}").write_bytes(data)
    script = """if True:
        import os, pathlib, sys
        from sailq.shared.media.reading import read_image, read_video
        from sailq.shared.errors import SailqError
        for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.*")):
            try:
                (read_video if path.suffix in {".mp4", ".mov", ".avi"} else read_image)(str(path))
            except SailqError as error:
                print(error)
        os.write(2, b"still here")
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) >= 8
    assert done.stderr == "still here"
