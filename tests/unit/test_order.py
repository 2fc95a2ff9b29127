"""Clips without timestamps of the order in which their frames are shown: right frames, decoding only near them."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from media_files import FPS, HEIGHT, SAME_SIZE, WIDTH, coded, number_of

from sailq.shared.media.containers import open_video
from sailq.shared.media.decoding import Decoder
from sailq.shared.media.limits import Stopwatch
from sailq.shared.media.order import Shown, leading
from sailq.shared.media.packets import Packets, VideoPacket
from sailq.shared.media.reading import read_video
from sailq.shared.media.sizing import Options

COUNT, GROUP = 240, 12
CODECS = {
    "closed": ("libx264", {"x264-params": f"keyint={GROUP}:scenecut=0:bframes=3:b-pyramid=normal:b-adapt=0"}),
    "open": ("libx264", {"x264-params": f"keyint={GROUP}:scenecut=0:bframes=3:b-pyramid=normal:b-adapt=0:open-gop=1"}),
    "mpeg4": ("mpeg4", {"bf": "2", "g": str(GROUP)}),
    "interlaced": ("mpeg4", {"bf": "2", "g": str(GROUP), "flags": "+ildct+ilme"}),
    "mpeg2": ("mpeg2video", {"bf": "2", "g": str(GROUP)}),
}


def write(path: Path, codec: str, skip: int = 0) -> Path:
    """`skip`: packets left out at the begin, so that the clip begins in a group before which nothing is."""
    name, options = CODECS[codec]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(name, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(coded(number), format="bgr24") for number in range(COUNT)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        output.mux(packets[skip:])
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_every_place_has_the_frame_that_decoding_all_gives(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / "clip.avi", codec)
    for places in (range(COUNT), range(COUNT - 1, -1, -1), range(5, COUNT, 31)):
        with open_video(path) as (container, stream):
            watch = Stopwatch()
            packets = Packets(path, container, stream, watch)
            decoder = Decoder(stream.codec_context, packets, watch)
            assert decoder.reorders and len(packets.keys) >= COUNT // GROUP
            assert leading(packets, decoder) == set()
            shown = Shown(packets, decoder, range(COUNT))
            found = [shown[place] for place in places]
            everything = decoder.order(0, COUNT - 1)
            assert found == [everything[place] for place in places] and everything != sorted(everything)
            opens = any(everything.index(key) > key for key in packets.keys)  # frames are shown before their key frame
            assert opens == (codec != "closed")


@pytest.mark.parametrize("codec", CODECS)
def test_a_few_frames_of_a_long_clip(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decode, sent = write(tmp_path / "clip.avi", codec), Packets.spans, 0

    def count(packets: Packets, spans: list[tuple[int, int]]) -> list[tuple[int, VideoPacket]]:
        nonlocal sent
        sent += sum(last - first + 1 for first, last in spans)
        return list(decode(packets, spans))

    monkeypatch.setattr(Packets, "spans", count)
    video = read_video(str(path), Options(nframes=4, **SAME_SIZE))
    assert [number_of(frame) for frame in video.frames] == [0, 80, 159, 239]
    assert [round(time * FPS) for time in video.times] == [0, 80, 159, 239]
    if codec != "interlaced":  # the decoder returns all of its B frames only if it starts at the clip's first group
        assert sent <= (2 + 4 * 4) * GROUP and video.damaged_frames == 0


def test_a_clip_that_begins_in_an_open_group(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", "open", GROUP)
    with open_video(path) as (container, stream):
        watch = Stopwatch()
        packets = Packets(path, container, stream, watch)
        assert packets.keys[0] < GROUP
        everything = Decoder(stream.codec_context, packets, watch).order(packets.keys[0], len(packets) - 1)
    video = read_video(str(path), Options(nframes=len(everything) // 2 * 2, **SAME_SIZE))
    numbers = [number_of(frame) for frame in video.frames]
    assert numbers == list(range(COUNT - len(numbers), COUNT))
