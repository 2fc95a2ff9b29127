"""Clips like those of cameras, recorders, phones and browsers. Each test represents a class of clips."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import qwen_oracle as oracle
from numbered import GOP, KINDS, TICK, TURNS, Pixels, Variant, number_shown, shows, write, write_at
from PIL import Image

from sailq.shared.errors import BadMedia, BadRequest
from sailq.shared.media import limits, packets
from sailq.shared.media.clips import Sampled
from sailq.shared.media.containers import open_video
from sailq.shared.media.decoding import Decoder
from sailq.shared.media.packets import Packets
from sailq.shared.media.reading import read_video
from sailq.shared.media.sizing import Options

KIND = {kind.name: kind for kind in KINDS}
SIZE = {"resized_height": 112, "resized_width": 168}


def read(path: Path | str, nframes: int = 8, **options: float) -> Sampled:
    return read_video(str(path), Options(nframes=nframes, **SIZE, **options))


def numbers(video: Sampled) -> list[int]:
    return [number_shown(frame) for frame in video.frames]


def clip(path: Path, kind: str = "mp4 h264", count: int = 60, **options: bool) -> Path:
    return write(path, Variant(KIND[kind], **options), count)


def stored(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path)) as container:
        yield from (packet for packet in container.demux(video=0) if packet.size)


def store(path: Path, source: Path, chosen: list[av.Packet], **options: str) -> Path:
    """A file of some packets of `source`, as they are."""
    with av.open(str(source)) as template, av.open(str(path), "w", options=options) as output:
        stream = output.add_stream_from_template(template.streams.video[0])
        for packet in chosen:
            packet.stream = stream
            output.mux(packet)
    return path


def spoiled(packet: av.Packet, data: bytes) -> av.Packet:
    other = av.Packet(data)
    other.pts, other.dts, other.time_base, other.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    other.is_keyframe = packet.is_keyframe
    return other


@pytest.mark.parametrize("kind", KIND)
def test_times_and_rates_are_those_of_qwen_vl_utils(tmp_path: Path, kind: str) -> None:
    path = clip(tmp_path / f"clip.{KIND[kind].suffix}", kind)
    for given in ({"nframes": 8}, {"fps": 4.0}, {"fps": 10.0, "video_start": 0.7, "video_end": 1.9}):
        video = read_video(path, Options(**given, **SIZE))
        times, fps = oracle.clip_times(60, 25, given)
        assert video.times == pytest.approx(times, abs=1e-6) and video.fps == pytest.approx(fps, abs=1e-6), given


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_times_are_exact_where_a_container_counts_in_milliseconds(tmp_path: Path, suffix: str) -> None:
    path, rate = tmp_path / f"clip.{suffix}", Fraction(30000, 1001)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(90):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shows(number), format="rgb24")))
        output.mux(stream.encode())
    for given in ({"nframes": 8}, {"fps": 4.0}, {"nframes": 6, "video_start": 0.7, "video_end": 1.9}):
        video = read_video(path, Options(**given, **SIZE))
        times, fps = oracle.clip_times(90, float(rate), given)
        assert video.times == pytest.approx(times, abs=1e-6) and video.fps == pytest.approx(fps, abs=1e-6), given


@pytest.mark.parametrize(("suffix", "kind"), [("mp4", "mp4 h264"), ("ts", "ts h264"), ("ts", "ts hevc"),
                                              ("mkv", "mkv mpeg2"), ("mp4", "mp4 hevc"), ("mkv", "mkv live vp8")])
def test_a_clip_that_starts_between_key_frames_begins_with_the_first_whole_frame(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    source = clip(tmp_path / f"source.{suffix}", kind)
    path = store(tmp_path / f"clip.{suffix}", source, list(stored(source))[GOP // 2 :])
    video = read(path)
    begin = numbers(video)[0]
    assert 0 < begin <= GOP + 3 and video.times[0] == 0 and video.damaged_frames == 0
    assert numbers(video) == [begin + int(at) for at in np.rint(np.linspace(0, 59 - begin, 8))]
    assert [round(time * 25) for time in video.times] == [number - begin for number in numbers(video)]


@pytest.mark.parametrize("kind", ["mp4 h264", "mkv h264", "avi mjpeg", "mp4 fragments h264", "mp4 mpeg4", "mkv mpeg2"])
@pytest.mark.parametrize("damage", ["zeros", "noise"])
def test_one_corrupt_packet_costs_one_frame_and_is_counted(tmp_path: Path, kind: str, damage: str) -> None:
    suffix = KIND[kind].suffix
    source, rng = clip(tmp_path / f"source.{suffix}", kind), random.Random(0)
    chosen = list(stored(source))
    for at in (29, 30):  # at least one of them is not a key frame
        if not chosen[at].is_keyframe or suffix == "avi":
            data = bytes(chosen[at].size) if damage == "zeros" else b"\xff" + rng.randbytes(chosen[at].size)
            chosen[at] = spoiled(chosen[at], data)
            break
    video = read(store(tmp_path / f"clip.{suffix}", source, chosen, **dict(KIND[kind].container_options)), 60)
    assert len(video.frames) == 60 and video.damaged_frames >= 1
    assert all(np.ptp(frame) > 100 for frame in video.frames[1:])  # none black, none grey; frame 0 is dark
    clean = [*range(at - 6), *range(at + GOP + 3, 60)]  # frames next to it refer to it
    assert [number_shown(video.frames[number]) for number in clean] == clean


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.interlaced])
def test_an_undamaged_interlaced_clip_has_no_damaged_frames(tmp_path: Path, kind: str) -> None:
    """MPEG-4 with B frames: the first selected frame after the start is in an open group."""
    path = clip(tmp_path / f"clip.{KIND[kind].suffix}", kind, 100, interlaced=True)
    for nframes in (2, 8, 16):
        video = read(path, nframes)
        assert numbers(video) == [int(at) for at in np.rint(np.linspace(0, 99, nframes))]
        assert video.damaged_frames == 0


def test_black_frames_without_compression_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "bgr24"
        for number in range(8):
            pixels = np.zeros((120, 160, 3), np.uint8) if number == 4 else shows(number)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr24")))
        output.mux(stream.encode())
    video = read(path)
    assert numbers(video) == [0, 1, 2, 3, 0, 5, 6, 7] and video.damaged_frames == 0


def test_a_corrupt_key_frame_costs_no_more_than_its_group(tmp_path: Path) -> None:
    source = clip(tmp_path / "source.mp4")
    chosen = list(stored(source))
    at = next(number for number in range(20, 60) if chosen[number].is_keyframe)
    chosen[at] = spoiled(chosen[at], bytes(chosen[at].size))
    video = read(store(tmp_path / "clip.mp4", source, chosen), 60)
    assert 1 <= video.damaged_frames <= GOP + 2
    for number in (*range(at - 6), *range(at + GOP + 3, 60)):
        assert number_shown(video.frames[number]) == number


def test_packets_that_are_wrongly_called_key_frames_do_no_harm(tmp_path: Path) -> None:
    for kind in ("mp4 mpeg4", "mp4 h264", "mkv hevc"):
        source = clip(tmp_path / f"source.{KIND[kind].suffix}", kind)
        chosen = list(stored(source))
        for packet in chosen:
            packet.is_keyframe = True
        path = store(tmp_path / f"clip.{KIND[kind].suffix}", source, chosen)
        assert numbers(read(path)) == [0, 8, 17, 25, 34, 42, 51, 59], kind


def test_a_clip_without_key_frames_is_read_once_the_decoder_has_recovered(tmp_path: Path) -> None:
    """Intra refresh, as low-latency cameras send it: each frame refreshes a part of the picture."""
    path = tmp_path / "clip.ts"
    with av.open(str(path), "w") as output:
        options = {"g": str(GOP), "bf": "0", "x264-params": "intra-refresh=1"}
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(60):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shows(number), format="rgb24")))
        output.mux(stream.encode())
    assert numbers(read(path)) == [0, 8, 17, 25, 34, 42, 51, 59]
    cut = store(tmp_path / "cut.ts", path, list(stored(path))[20:])
    whole = read(cut, 20).frames[10:]  # FFmpeg returns frames before they are refreshed completely
    assert [number_shown(frame) for frame in whole] == sorted({number_shown(frame) for frame in whole})
    assert number_shown(whole[-1]) == 59


def test_a_clip_that_is_still_being_written_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    for suffix, kind in (("mp4", "mp4 fragments h264"), ("mkv", "mkv h264"), ("ts", "ts h264"), ("flv", "flv h264")):
        data = clip(tmp_path / f"whole.{suffix}", kind, 120).read_bytes()
        path = tmp_path / f"clip.{suffix}"
        path.write_bytes(data[: 2 * len(data) // 3])
        found = numbers(read(path))
        assert found[0] == 0 and found == sorted(set(found)) and 40 <= found[-1] < 110, kind


def test_segments_of_a_recorder_are_timed_from_their_own_start(tmp_path: Path) -> None:
    ticks = [tick + 5000 for tick in range(100)]
    for kind in ("mkv h264", "ts h264", "mp4 h264", "flv h264", "mpg mpeg2"):
        path = write_at(tmp_path / f"clip.{KIND[kind].suffix}", Variant(KIND[kind]), ticks)
        video = read(path, 4)
        assert numbers(video) == [0, 33, 66, 99] and video.times == (0.0, 1.32, 2.64, 3.96), kind
        assert video.fps == pytest.approx(1.0)
        assert numbers(read(path, 2, video_start=2.0, video_end=3.0)) == [50, 75], kind


def test_a_browsers_recording_goes_by_its_timestamps(tmp_path: Path) -> None:
    """The clip states no duration and 1000 fps, and its frames come at irregular times."""
    rng, times = random.Random(1), [0]
    while len(times) < 120:
        times.append(times[-1] + rng.choice([16, 17, 33, 33, 34, 50]))
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", options={"live": "1"}) as output:
        stream = output.add_stream("libvpx", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(shows(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    video = read(path)
    wanted = [Fraction(times[-1] * place, 7) for place in range(8)]
    assert numbers(video) == [max(n for n, time in enumerate(times) if time <= want) for want in wanted]
    seconds = times[-1] / 1000
    assert len(read_video(str(path), Options(fps=4, **SIZE)).frames) == int(seconds * 120 / 119 * 4) // 2 * 2


@pytest.mark.parametrize("kind", ["mkv h264", "mp4 h264"])
def test_a_clip_with_rare_frames_is_read_at_even_times(tmp_path: Path, kind: str) -> None:
    ticks = [*range(50), *range(50, 1500, 25)]
    path = write_at(tmp_path / f"clip.{KIND[kind].suffix}", Variant(KIND[kind]), ticks)
    video = read(path)
    wanted = [Fraction(ticks[-1] * place, 7) for place in range(8)]
    expected = [max(n for n, tick in enumerate(ticks) if tick <= want) for want in wanted]
    assert numbers(video) == expected
    assert np.allclose(video.times, [float(ticks[number] * TICK) for number in expected], atol=0.0011)
    late = read(path, 4, video_start=30.0)
    assert [round(time) for time in late.times] == [30, 39, 49, 59]
    assert len(read(path, 2, video_start=30.2, video_end=30.6).frames) == 2  # one still frame, twice
    with pytest.raises(BadRequest, match="after 90 s"):
        read(path, 2, video_start=90.0)
    with pytest.raises(BadRequest, match="108"):
        read(path, 200)


@pytest.mark.parametrize("kind", ["ts h264", "ts mpeg2"])
@pytest.mark.parametrize("first", [58, 59, 60])
def test_recordings_joined_into_one_file_are_read_one_after_the_other(tmp_path: Path, kind: str, first: int) -> None:
    """The second begins at its own time: the timestamps jump back."""
    parts = [clip(tmp_path / f"{number}.ts", kind, count) for number, count in enumerate((first, 100 - first))]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = read(path, 100)
    right = [*range(first), *range(100 - first)]
    wrong = [at for at, number in enumerate(numbers(video)) if number != right[at]]
    # FFmpeg cannot tell whether the last packet before a jump is whole.
    assert len(wrong) == video.damaged_frames <= 1 and all(first - 3 <= at < first for at in wrong)
    assert video.fps == 25 and video.times == pytest.approx(
        [(at - (at in wrong)) / 25 for at in range(100)], abs=1e-5
    )


def test_odd_sizes(tmp_path: Path) -> None:
    for codec, pixels in (("libx264", "yuv444p"), ("ffv1", "yuv420p"), ("mjpeg", "yuvj420p"), ("libvpx", "yuv420p")):
        path = tmp_path / "clip.mkv"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 321, 241, pixels
            for number in range(8):
                frame = av.VideoFrame.from_ndarray(shows(number), format="rgb24")
                output.mux(stream.encode(frame.reformat(321, 241, pixels, threads=1)))
            output.mux(stream.encode())
        video = read_video(str(path), Options(nframes=8))
        assert numbers(video) == list(range(8)) and video.frames.shape[1:3] == (280, 392), codec


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xc7\xb0\xc3\xc5.mp4"
    os.rename(clip(tmp_path / "a.mp4"), path)
    assert numbers(read(os.fsdecode(path))) == [0, 8, 17, 25, 34, 42, 51, 59]
    with pytest.raises(BadMedia) as caught:
        read(os.fsdecode(path) + "x")
    str(caught.value).encode()


def test_a_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "concat:a%20b.mp4")
    assert numbers(read("concat:a%20b.mp4"))[-1] == 59


def test_a_mirrored_and_turned_clip(tmp_path: Path) -> None:
    """The corpus turns or mirrors; this clip is both, as a front camera's may be."""
    matrix = (0, 1, 1, 0)
    TURNS["transposed"] = (matrix, lambda frame: np.swapaxes(frame, 0, 1))
    try:
        path = write(tmp_path / "clip.mp4", Variant(KIND["mp4 h264"], turn="transposed"))
    finally:
        del TURNS["transposed"]
    video = read_video(str(path), Options(nframes=2, resized_height=168, resized_width=112))
    assert [number_shown(np.swapaxes(frame, 0, 1)) for frame in video.frames] == [0, 29]


ORIENTATIONS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda frame: frame,
    2: lambda frame: frame[:, ::-1],
    3: lambda frame: frame[::-1, ::-1],
    4: lambda frame: frame[::-1],
    5: lambda frame: np.swapaxes(frame, 0, 1),
    6: lambda frame: np.rot90(frame, 1),
    7: lambda frame: np.swapaxes(frame[::-1, ::-1], 0, 1),
    8: lambda frame: np.rot90(frame, 3),
}
"""What turns a frame that is shown by this EXIF orientation back to its pixels."""


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_clip_of_jpegs_with_exif_is_read_and_turned(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "clip.avi", Image.Exif()
    exif[0x0112] = orientation
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuvj420p"
        for number in range(8):
            data = io.BytesIO()
            Image.fromarray(shows(number)).save(data, "JPEG", exif=exif)
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, TICK, number, number
            packet.is_keyframe = True
            output.mux(packet)
    frames = read_video(path, Options(nframes=8)).frames
    assert [number_shown(ORIENTATIONS[orientation](frame)) for frame in frames] == list(range(8))


@pytest.mark.parametrize("kind", ["mp4 h264", "mp4 fragments h264", "ts hevc", "mkv hevc", "mkv live vp8", "mpg mpeg2"])
@pytest.mark.parametrize("later", [False, True])
def test_a_clip_whose_packets_are_not_kept_in_memory_gives_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, later: bool
) -> None:
    path = clip(tmp_path / f"clip.{KIND[kind].suffix}", kind, 120, later=later)
    kept = [read(path, count) for count in (2, 4, 8)]
    monkeypatch.setattr(packets, "MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr(packets, "_FAR", 5)
    again = [read(path, count) for count in (2, 4, 8)]
    assert all(np.array_equal(one.frames, other.frames) for one, other in zip(kept, again, strict=True))
    assert numbers(again[2]) == [0, 17, 34, 51, 68, 85, 102, 119]


def test_a_large_clip_is_read_from_key_frame_to_key_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4", count=600)
    monkeypatch.setattr(packets, "MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr(packets, "_FAR", 5)
    count, demux = 0, packets.Packets._demux

    def counted(*arguments: object) -> Iterator[av.Packet]:
        nonlocal count
        for packet in demux(*arguments):
            count += 1
            yield packet

    monkeypatch.setattr(packets.Packets, "_demux", counted)
    read(path, 4)
    assert count < 600 + 8 * GOP


def test_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", count=600)
    decoded = 0
    with pytest.MonkeyPatch.context() as patch:
        progress = limits.Stopwatch.progress

        def count(watch: limits.Stopwatch) -> None:
            nonlocal decoded
            decoded += 1
            progress(watch)

        patch.setattr(limits.Stopwatch, "progress", count)
        assert len(read(path, 4).frames) == 4
    assert decoded < 5 * GOP


def test_an_encrypted_clip_is_refused_as_such(tmp_path: Path) -> None:
    source, path = clip(tmp_path / "source.mp4"), tmp_path / "clip.mp4"
    secret = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
              "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}
    store(path, source, list(stored(source)), **secret)
    with pytest.raises(BadMedia, match="encrypted"):
        read(path)


def test_a_clip_that_takes_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(packets, "MAX_PACKETS", 59)
        with pytest.raises(BadMedia, match="more than 59 frames"):
            read(path)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_SECONDS", 0.0)
        with pytest.raises(BadMedia, match="processor time"):
            read(path)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_PIXELS", 160 * 120 - 1)
        with pytest.raises(BadMedia, match="160 × 120"):
            read(path)


def test_all_frames_are_decoded_after_some_were(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    with open_video(path) as (container, stream):
        watch = limits.Stopwatch()
        decoder = Decoder(stream.codec_context, Packets(path, container, stream, watch), watch)
        stream.codec_context.skip_frame = "NONREF"  # as after a range whose last packet was not wanted
        assert len(decoder.order(0, 59)) == 60
