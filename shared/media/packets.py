"""Reads the packets of a clip and their timestamps without decoding."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import av
from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream

from ..errors import BadMedia
from .containers import open_video
from .limits import MAX_KEPT_BYTES, MAX_PACKETS, Stopwatch

VideoPacket: TypeAlias = "Packet[VideoStream]"
NONE = -(2**63)
"""FFmpeg's AV_NOPTS_VALUE: no timestamp."""
_MAX_ERRORS = 16
"""The number of demuxer errors after which the rest of the file is not read."""
_INDEXED = ("mov", "matroska")
"""Containers in which FFmpeg finds key frames exactly."""
_FAR = 100
"""The number of packets up to which reading is faster than seeking."""
_BLANK = bytes(8)
"""The start of a lost packet: data that was never written reads as zeros."""
_NEVER_BLANK = {"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "wmv2", "flv1"}
"""Codecs whose packets never start with these bytes."""


class Packets:
    """The video packets of a file in its order, as often as wanted. A packet's number is its place in that order.

    Attributes:
        pts, dts: timestamps in ticks of the stream's time base; `NONE` where the file has none.
        keys: numbers of the key frames, ascending.
        hidden: numbers of the packets whose frames are not shown (an edit list's, VP8's alternate references).
        damaged: numbers of the packets that are visibly broken.
        encrypted: whether a packet is.
    """

    def __init__(self, source: Path | bytes, container: InputContainer, stream: VideoStream, watch: Stopwatch) -> None:
        self._source = source
        self._kept: list[VideoPacket] | None = []
        self._watch = watch
        self.pts, self.dts = array("q"), array("q")
        self.keys = array("q")
        self.hidden: set[int] = set()
        self.damaged: set[int] = set()
        self.encrypted = False
        codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else ""
        kept = 0
        for number, packet in enumerate(self._demux(container, stream)):
            if number == MAX_PACKETS:
                raise BadMedia(f"The clip has more than {MAX_PACKETS} frames.")
            self.pts.append(NONE if packet.pts is None else packet.pts)
            self.dts.append(NONE if packet.dts is None else packet.dts)
            head = bytes(memoryview(packet)[:8])
            if packet.is_keyframe:
                self.keys.append(number)
            blank = codec in _NEVER_BLANK and head == _BLANK[: len(head)]
            if self.keys and (packet.is_corrupt or blank):
                self.damaged.add(number)
            elif packet.is_discard or (codec == "vp8" and not head[0] & 0x10):  # RFC 6386, 9.1: show_frame
                self.hidden.add(number)
            if number == 0:
                self.encrypted = packet.has_sidedata("encryption_info")
            kept += packet.size
            if kept > MAX_KEPT_BYTES:
                self._kept = None
            if self._kept is not None:
                packet.pts = number  # decoders copy it to the frame
                self._kept.append(packet)

    def __len__(self) -> int:
        return len(self.pts)

    def spans(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, VideoPacket]]:
        """(number, packet) of ascending ranges, both ends included. Such a packet's `pts` is its number."""
        if self._kept is not None:
            for first, last in spans:
                for number in range(first, last + 1):
                    yield number, self._kept[number]
        else:
            yield from self._reread(spans, seek=True)

    def _reread(self, spans: Sequence[tuple[int, int]], seek: bool) -> Iterator[tuple[int, VideoPacket]]:
        """`spans` from the file; in containers with an index, what lies between far ranges is not read."""
        with open_video(self._source) as (container, stream):
            seek = seek and container.format.name.startswith(_INDEXED)
            packets: Iterator[VideoPacket] = self._demux(container, stream)
            number = 0  # number of the next packet
            for place, (first, last) in enumerate(spans):
                if seek and first - number > _FAR:
                    with suppress(av.FFmpegError):
                        container.seek(self.pts[first], stream=stream)
                    packets = self._demux(container, stream)
                    head = next(packets, None)
                    found = None if head is None or head.pts is None else self._key_at(head.pts)
                    if head is None or found is None or found > first:
                        yield from self._reread(spans[place:], seek=False)
                        return
                    packets, number = chain([head], packets), found
                for packet in packets:
                    if number >= first:
                        packet.pts = number
                        yield number, packet
                    number += 1
                    if number > last:
                        break

    def _key_at(self, stamp: int) -> int | None:
        """The key frame with this timestamp, if it is the only one."""
        found = [number for number in self.keys if self.pts[number] == stamp]
        return found[0] if len(found) == 1 else None

    def _demux(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
        for _ in range(_MAX_ERRORS):
            try:
                for packet in container.demux(stream):
                    self._watch.check()
                    if packet.size:
                        yield packet
                return
            except (av.FFmpegError, ValueError, IndexError):  # IndexError: a stream appears later in the file
                continue  # with the packets after the damage
