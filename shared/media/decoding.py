"""Decodes single frames of a clip, each from the key frame before it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence

import av
from av import VideoFrame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from .limits import MAX_PIXELS, Stopwatch
from .packets import NONE, Packets, VideoPacket

Take = Callable[[int, VideoFrame], None]
"""Gets a packet's number and its frame."""
_VOP, _B = b"\0\0\1\xb6", 2
"""MPEG-4's start code of a frame and, from the 2 bits behind it, the type of B frames (ISO/IEC 14496-2, 6.2.5)."""


class Decoder:
    """Decodes frames by the number of their packet.

    A frame may be lost although its packet is whole: a frame that it refers to is damaged, or the packet that is marked
    as a key frame is not one. The frame is tried once more from an earlier key frame before it counts as damaged.

    Attributes:
        damaged: numbers of the packets that gave no undamaged frame.
        keep_corrupt: whether frames that the decoder marks as corrupt are used.
    """

    def __init__(self, context: VideoCodecContext, packets: Packets, watch: Stopwatch) -> None:
        self._context = context
        self._packets = packets
        self._watch = watch
        self._keys = list(packets.keys) or [0]
        self._mpeg4 = context.codec.canonical_name == "mpeg4"
        self.damaged = set(packets.damaged)
        self.keep_corrupt = False
        context.thread_count = 1  # with one thread, an error concerns the packet just sent
        context.options = {"max_pixels": str(MAX_PIXELS)}

    @property
    def reorders(self) -> bool:
        """Whether frames may come in another order than their packets."""
        return bool(self._context.has_b_frames)

    def order(self, first: int, last: int) -> list[int]:
        """The numbers of all frames of the packets from `first` to `last`, in display order."""
        numbers: list[int] = []
        self._run([(first, last)], None, lambda number, _: numbers.append(number))
        return numbers

    def frames(self, wanted: Collection[int], take: Take) -> set[int]:
        """Calls `take` once for each wanted frame that can be decoded. Returns their numbers; the others are
        damaged."""
        here = self._run(self._spans(wanted, 0), set(wanted), take, skip=True)
        lost = set(wanted) - here
        if not lost:
            return here
        spans = self._spans(lost, 1)
        came: set[int] = set()

        def note(number: int, frame: VideoFrame) -> None:
            came.add(number)
            if number in lost and number not in here:
                here.add(number)
                take(number, frame)

        self._run(spans, None, note)
        self.damaged -= came
        for first, last in spans:
            self.damaged.update(self._gaps(first, last, came))
        return here

    def _gaps(self, first: int, last: int, came: set[int]) -> Iterator[int]:
        """The frames of this range that the decoder did not return, though it had started before them."""
        begun = min((number for number in came if first <= number <= last), default=first)
        for number in range(begun, last + 1):
            if number not in came and self._stamp(number) >= self._stamp(begun):
                yield number

    def _spans(self, wanted: Collection[int], back: int) -> list[tuple[int, int]]:
        """Ranges of packets to decode for these frames, each from a key frame. `back`: how many key frames earlier to
        start."""
        spans: list[tuple[int, int]] = []
        for number in sorted(wanted):
            at = bisect_right(self._keys, number) - 1
            # In an open group, frames that are shown before their key frame refer to the previous group.
            while at > 0 and self._stamp(self._keys[at]) > self._stamp(number):
                at -= 1
            first, last = self._keys[max(at - back, 0)], self._end(number)
            if spans and first <= spans[-1][1] + 1:
                spans[-1] = (min(first, spans[-1][0]), max(last, spans[-1][1]))
            else:
                spans.append((first, last))
        return spans

    def _stamp(self, number: int) -> int:
        return self._packets.pts[number]

    def _end(self, number: int) -> int:
        """The last packet of a frame: the second field of a frame may be a packet of its own, without a timestamp."""
        while number + 1 < len(self._packets) and self._stamp(number) != NONE == self._stamp(number + 1):
            number += 1
        return number

    def _run(
        self, spans: Sequence[tuple[int, int]], wanted: set[int] | None, take: Take, skip: bool = False
    ) -> set[int]:
        """Decodes each range and calls `take` for the wanted frames (None: all). Returns their numbers.

        `skip`: leave out frames that are neither wanted nor referred to by others.
        """
        came: set[int] = set()
        errors: set[int] = set()
        needed = None  # packets to decode, including second fields; None: all
        if skip and wanted is not None:
            needed = {part for number in wanted for part in range(number, self._end(number) + 1)}
        starts = dict(spans)
        start = end = -1
        leading = False  # whether only B frames came after the key frame
        sure = True  # whether the decoder has started with a true key frame

        def receive(packet: VideoPacket | None, number: int) -> None:
            nonlocal sure
            try:
                frames = self._context.decode(packet)
            except (av.FFmpegError, ValueError):
                errors.add(number)
                return
            for frame in frames:
                self._watch.progress()
                shown = frame.pts
                if shown is None or (frame.is_corrupt and not self.keep_corrupt):
                    continue
                sure = sure or (shown == start and (bool(frame.key_frame) or frame.pict_type == PictureType.I))
                if sure and shown not in came and (wanted is None or shown in wanted):
                    came.add(shown)
                    take(shown, frame)

        def finish() -> None:
            """Ends a range, whose key frame must have decoded as one or be damaged."""
            if end < 0:
                return
            receive(None, end)
            self._context.flush_buffers()
            if not sure and not ({start} & (errors | self.damaged)):
                self._keys = self._keys[:1]  # other packets are marked as key frames and are not: decode from the first

        self._watch.progress()
        for number, packet in self._packets.spans(spans):
            self._watch.check()
            if number in starts:
                finish()
                start, end = number, starts[number]
                sure = start == self._keys[0] or start in self._packets.hidden
                leading = self._mpeg4
            elif leading:
                # FFmpeg's decoder computes the time between two fields from the first B frame that it sees. If the
                # reference of that frame was not decoded, the time is wrong, and the decoder drops all B frames of
                # interlaced clips.
                leading = _is_b(packet)
                if leading:
                    continue
            all_of_it = needed is None or number in needed or number == start
            self._context.skip_frame = "DEFAULT" if all_of_it else "NONREF"
            receive(packet, number)
        finish()
        self.damaged |= errors
        return came


def _is_b(packet: VideoPacket) -> bool:
    """Whether a packet of MPEG-4 begins with a B frame."""
    _, found, frame = bytes(packet).partition(_VOP)
    return bool(found and frame) and frame[0] >> 6 == _B
