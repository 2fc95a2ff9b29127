"""Real clips and images, made on the fly: the right frames, sizes and colours."""

from __future__ import annotations

import base64
import random
import struct
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import qwen_oracle as oracle
from media_files import (
    CONTAINERS,
    FPS,
    FRAMES,
    HEIGHT,
    SAME_SIZE,
    WIDTH,
    coded,
    frames_of,
    image,
    number_of,
    sequential,
    write_clip,
    write_h264,
    write_image,
)
from PIL import Image

from sailq.shared.errors import BadMedia, SailqError
from sailq.shared.jobs import ModelCard
from sailq.shared.media.reading import read_image, read_video
from sailq.shared.media.sizing import Budget, Options, frame_indices


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_each_container_gives_the_right_frames(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", CONTAINERS[suffix])
    frames = frames_of(str(path), Options(nframes=8, **SAME_SIZE))
    assert frames.shape == (8, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == [0, 8, 17, 25, 34, 42, 51, 59]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_b_frames_come_in_the_order_they_are_shown(tmp_path: Path, suffix: str) -> None:
    path = write_h264(tmp_path / f"clip.{suffix}")
    frames = frames_of(str(path), Options(nframes=60, **SAME_SIZE))
    assert [number_of(frame) for frame in frames] == list(range(60))


def test_frames_are_those_of_a_sequential_decode(tmp_path: Path) -> None:
    paths = [write_clip(tmp_path / f"clip.{suffix}", fourcc) for suffix, fourcc in CONTAINERS.items()]
    paths.append(write_h264(tmp_path / "h264.mp4", gop=30))
    rng = random.Random(0)
    for path in paths:
        everything = sequential(path)
        for _ in range(8):
            start = rng.uniform(0, 1.9)
            end = rng.uniform(start + 0.4, 2.4)
            given = Options(nframes=rng.choice([2, 4, 6]), video_start=start, video_end=end, **SAME_SIZE)
            frames = frames_of(str(path), given)
            expected = [everything[index] for index in frame_indices(given, FRAMES, FPS)]
            assert np.array_equal(frames, np.stack(expected)), (path.name, given)


@pytest.mark.parametrize("card", [None, *oracle.CARDS.values()], ids=["unknown", *oracle.CARDS])
def test_clips_get_the_frames_sizes_and_times_of_qwen_vl_utils(card: ModelCard | None, tmp_path: Path) -> None:
    rng, read = random.Random(1), 0
    for turn in range(20):
        count, height, width = rng.randrange(2, 40), 2 * rng.randrange(8, 90), 2 * rng.randrange(8, 90)
        path = write_clip(tmp_path / f"{turn}.avi", "MJPG", count, (width, height))
        for _ in range(5):
            given: dict[str, Any] = {"nframes": rng.randrange(1, 20)} if rng.random() < 0.5 else {"fps": 8}
            if rng.random() < 0.5:
                given |= {"min_pixels": rng.randrange(30_000), "max_pixels": rng.randrange(1, 60_000)}
            if rng.random() < 0.5:
                given |= {"video_start": rng.uniform(0, 1), "video_end": rng.uniform(0.5, 3)}
            expected = oracle.clip_plan(count, FPS, height, width, given, oracle.patch_of(card))
            try:
                video = read_video(str(path), Options(**given), budget=Budget(card))
            except SailqError:
                assert expected is None, given
                continue
            assert expected is not None and video.frames.shape == (len(expected[0]), *expected[1], 3), given
            times, fps = oracle.clip_times(count, FPS, given)
            assert video.times == pytest.approx(times, abs=1e-6) and video.fps == pytest.approx(fps, abs=1e-6)
            read += 1
    assert 20 < read < 95


@pytest.mark.parametrize("fps", [2.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_lists_of_images_have_the_times_of_qwen_vl_utils(count: int, fps: float, tmp_path: Path) -> None:
    """qwen-vl-utils names the rate sample_fps. An odd list's last image is repeated, at a time of its own."""
    paths = [write_image(tmp_path / f"{number}.png", coded(number)) for number in range(count)]
    (_, about), theirs = oracle.qwen.fetch_video(
        {"video": paths, "sample_fps": fps}, return_video_metadata=True, return_video_sample_fps=True
    )
    ours = read_video(paths, Options(fps=fps))
    assert ours.times == pytest.approx(oracle.times(about), abs=1e-6) and ours.fps == theirs == fps
    untimed = read_video(paths)
    assert (untimed.times, untimed.fps) == ((), None)


@pytest.mark.parametrize("card", [None, *oracle.CARDS.values()], ids=["unknown", *oracle.CARDS])
def test_lists_of_images_get_the_sizes_of_qwen_vl_utils(card: ModelCard | None, tmp_path: Path) -> None:
    rng, read = random.Random(2), 0
    for turn in range(60):
        height, width = rng.randrange(8, 300), rng.randrange(8, 300)
        other = (height, width) if rng.random() < 0.7 else (height + rng.randrange(60), width)
        sizes = [(height, width), other, other][: rng.randrange(1, 4)]
        paths = [write_image(tmp_path / f"{turn}-{n}.png", image(*size)) for n, size in enumerate(sizes)]
        given: dict[str, Any] = {}
        if rng.random() < 0.4:
            given = {"min_pixels": rng.randrange(30_000), "max_pixels": rng.randrange(1, 90_000), "fps": 1.0}
        elif rng.random() < 0.4:
            given = {"resized_height": rng.randrange(1, 300), "resized_width": rng.randrange(1, 300)}
        expected = oracle.list_size([Image.open(path) for path in paths], given, oracle.patch_of(card))
        try:
            ours = read_video(paths, Options(**given), budget=Budget(card)).frames.shape[:3]
        except SailqError:
            ours = None
        assert ours == expected, (sizes, given)
        read += ours is not None
    assert 20 < read < 58


def test_an_odd_list_takes_its_last_image_twice(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png", coded(number)) for number in (3, 4, 5)]
    frames = frames_of(paths, Options(**SAME_SIZE))
    assert [number_of(frame) for frame in frames] == [3, 4, 5, 5]


def test_a_stride_keeps_every_nth_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    frames = frames_of(str(path), Options(nframes=12, video_sample_num=5, **SAME_SIZE))
    assert [number_of(frame) for frame in frames] == [0, 27]


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    matrix = data.index(upright, data.index(b"tkhd"))
    data[matrix : matrix + 36] = turned
    path.write_bytes(data)
    frames = frames_of(str(path), Options(nframes=2, resized_height=WIDTH, resized_width=HEIGHT))
    assert [number_of(np.rot90(frame)) for frame in frames] == [0, 59]


@pytest.mark.parametrize("gop", [12, 60])
def test_a_clip_trimmed_by_an_edit_list_is_whole(tmp_path: Path, gop: int) -> None:
    """The clip states 60 frames, all of which are stored; 35 of them are shown."""
    source, path = write_h264(tmp_path / "source.mp4", gop=gop), tmp_path / "trimmed.mp4"
    keep_early = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as whole, av.open(str(path), "w", options=keep_early) as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts = (at - int(1 / packet.time_base) for at in (packet.pts, packet.dts))
                packet.stream = stream
                output.mux(packet)
    video = read_video(str(path), Options(nframes=4, **SAME_SIZE))
    assert [number_of(frame) for frame in video.frames] == [25, 36, 48, 59]
    assert video.times == (0.0, 0.44, 0.92, 1.36) and video.damaged_frames == 0


def test_a_live_recording_that_states_no_length_is_read(tmp_path: Path) -> None:
    path = write_h264(tmp_path / "live.mkv", live="1")
    frames = frames_of(str(path), Options(nframes=4, **SAME_SIZE))
    assert [number_of(frame) for frame in frames] == [0, 20, 39, 59]


def test_paths_may_be_relative_and_begin_with_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    from_url = frames_of(f"file://{path}", Options(nframes=2))
    assert np.array_equal(from_url, frames_of("clip.mp4", Options(nframes=2), base=tmp_path))
    picture = write_image(tmp_path / "a.png", image())
    assert np.array_equal(read_image("a.png", base=tmp_path), read_image(f"file://{picture}"))


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_images_keep_their_pixels(tmp_path: Path, suffix: str) -> None:
    pixels = image()
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])
    frames = read_image(str(tmp_path / f"a.{suffix}"))
    assert np.array_equal(frames, pixels[np.newaxis, :, :, ::-1]) and frames.dtype == np.uint8


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpegs_are_read_as_pillow_reads_them(tmp_path: Path, options: dict[str, Any]) -> None:
    smooth = np.asarray(Image.fromarray(image(4, 6)).resize((84, 56)))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", **options)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"), np.int16)
    assert np.abs(read_image(str(tmp_path / "a.jpg"))[0] - expected).max() <= 4


def test_data_that_a_phone_appends_to_a_jpeg_is_ignored(tmp_path: Path) -> None:
    path = Path(write_image(tmp_path / "a.jpg", image()))
    alone = read_image(str(path))
    path.write_bytes(path.read_bytes() + b"ftypmp42\xff\xda" + bytes(1000))
    assert np.array_equal(read_image(str(path)), alone)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((56, 56, 4), np.uint8)
    pixels[:, :, 0] = 200
    pixels[:28, :, 3], pixels[28:, :, 3] = 255, 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    for name in ("a.png", "a.webp"):
        frame = read_image(name, base=tmp_path)[0]
        assert frame[0, 0].tolist() == [200, 0, 0] and frame[55, 0].tolist() == [244, 204, 204], name


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "PA-tRNS", "I;16", "RGB16"])
def test_every_mode_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.arange(56, dtype=np.uint8) * 4, 56).reshape(56, 56)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    path, plain = tmp_path / "a.png", Image.fromarray(grey)
    if mode == "I;16":
        write_image(path, grey.astype(np.uint16) * 257)
    elif mode == "RGB16":
        write_image(path, expected.astype(np.uint16) * 257)
    elif mode == "PA-tRNS":
        plain.quantize(256).save(path, transparency=0)
        expected = np.asarray(Image.open(path).convert("RGBA"))
        expected = np.where(expected[:, :, 3:] == 0, 255, expected[:, :, :3]).astype(np.uint8)
    else:
        plain.convert(mode).save(path)
        expected = np.asarray(plain.convert(mode).convert("RGB"))
    assert np.array_equal(read_image(str(path))[0], expected)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((56, 84, 3), np.uint8)
    pixels[:, :42] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn clockwise to show"
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    frame = read_image("a.jpg", base=tmp_path)[0]
    assert frame.shape == (84, 56, 3)
    assert frame[5, 28, 0] > 200 and frame[78, 28, 0] < 50


def test_a_data_url_is_an_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", image())
    url = "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    assert np.array_equal(read_image(url), read_image(path))
    with pytest.raises(BadMedia) as caught:
        read_image(url[:-5] + "!" * 400)
    assert len(str(caught.value)) < 200
