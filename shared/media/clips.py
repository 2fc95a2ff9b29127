"""Reads video files into frames: uint8 [frames, height, width, 3], RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from ..errors import BadMedia
from ..frames import Frames
from . import orientation, sizing, timeline
from .containers import codec_name, open_video
from .decoding import Decoder
from .images import Image, on_white
from .limits import Stopwatch, check_size
from .order import Shown, leading
from .packets import Packets
from .resizing import resize
from .sizing import Budget, Options
from .timeline import Timeline


@dataclass(frozen=True)
class Sampled:
    """The frames kept of a video.

    Attributes:
        frames: uint8 [frames, height, width, 3], RGB.
        times: when each is shown, in seconds from the clip's first frame; empty for a list of images.
        fps: kept frames a second; None for a list of images and for a clip of one frame.
        damaged_frames: number of damaged frames found. Only frames near the kept ones are checked.
    """

    frames: Frames
    times: tuple[float, ...] = ()
    fps: float | None = None
    damaged_frames: int = 0


def read_clip(source: Path | bytes, options: Options, budget: Budget) -> Sampled:
    """The frames that the options keep of a video file or its bytes, upright.

    A damaged frame is replaced by the whole frame before it, or else by the one after it.

    Raises BadMedia if no frame can be decoded, BadRequest for options that the clip cannot meet, and TooLong before
    any frame is kept.
    """
    with open_video(source) as (container, stream):
        clip = _Clip(source, container, stream)
        slots, fps = clip.timeline.choose(options, budget.group)
        height, width = clip.size
        size = sizing.video_size(height, width, len(slots), options, budget.card)
        budget.check(len(slots), *size)
        used, pictures = clip.read(slots, size)
        frames = np.stack([pictures[slot] for slot in used])
        times = tuple(clip.timeline.seconds(slot) for slot in used)
        return Sampled(frames, times, fps, clip.damaged_frames)


class _Clip:
    """An open clip, with its timeline and the size (height, width) of its first whole frame, upright."""

    timeline: Timeline
    size: tuple[int, int]

    def __init__(self, source: Path | bytes, container: InputContainer, stream: VideoStream) -> None:
        self._codec = codec_name(source, stream)
        watch = Stopwatch()
        self._packets = Packets(source, container, stream, watch)
        if not len(self._packets):
            raise BadMedia("The clip contains no frames.")
        if self._packets.encrypted:
            raise BadMedia("The clip is encrypted.")
        if stream.codec_context is None:
            raise BadMedia(f"There is no decoder for the clip's codec ({self._codec}).")
        # Packets that an MP4's index places after the end of the file are lost.
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        is_mp4 = container.format.name.startswith("mov")
        self._cut = sum(entry.pos >= size for entry in stream.index_entries) if is_mp4 else 0
        self._decoder = Decoder(stream.codec_context, self._packets, watch)
        self.timeline = self._timeline(stream)
        self._slots: dict[int, int] = {}
        self._measure()

    @property
    def damaged_frames(self) -> int:
        return len(self._decoder.damaged - self._packets.hidden) + self._cut

    def _timeline(self, stream: VideoStream) -> Timeline:
        packets, last = self._packets, len(self._packets) - 1
        # AVI does not store when a frame is shown; FFmpeg guesses it.
        guessed = self._decoder.reorders and stream.container.format.name == "avi"
        found = None if guessed else timeline.from_packets(packets, stream, self._decoder.reorders)
        if found is None:
            lost = leading(packets, self._decoder) if len(packets.keys) > 2 else None
            if lost is not None:
                stored = [one for one in range(packets.keys[0], last + 1) if one not in packets.hidden]
                shown = Shown(packets, self._decoder, [one for one in stored if one not in lost])
                return timeline.from_order(packets, stream, shown, stored[len(lost) :])  # the lost frames come first
            numbers = self._decoder.order(0, last)
            if not numbers:
                raise self._hopeless()
            return timeline.from_order(packets, stream, numbers, numbers)
        # The clip begins in an open group: its first frames refer to missing ones.
        key = packets.keys[0]
        ahead = found.numbers[: found.numbers.index(key)] if key in found.numbers else []
        if ahead:
            lost = set(ahead) - set(self._decoder.order(key, max(ahead)))
            self._decoder.damaged -= lost
            return found.without(lost, stream)
        return found

    def _measure(self) -> None:
        """Finds the first whole frame."""

        def take(number: int, frame: VideoFrame) -> None:
            check_size(frame.height, frame.width)
            turned = orientation.swaps_sides(orientation.of_frame(frame))
            self.size = (frame.width, frame.height) if turned else (frame.height, frame.width)

        self._decode([0], take)

    def read(self, slots: Sequence[int], size: tuple[int, int]) -> tuple[list[int], dict[int, Image]]:
        """(the slot used for each of `slots`, pictures of `size` by slot)"""
        pictures: dict[int, Image] = {}

        def take(number: int, frame: VideoFrame) -> None:
            check_size(frame.height, frame.width)
            pictures[self._slots[number]] = resize(_pixels(frame), *size)

        return self._decode(slots, take), pictures

    def _decode(self, slots: Sequence[int], take: Callable[[int, VideoFrame], None]) -> list[int]:
        """Calls `take` once for each frame of `slots`, or for its replacement. Returns the slots taken."""
        numbers = self.timeline.numbers
        here: set[int] = set()
        while True:
            used = [self._whole(slot) for slot in slots]
            self._slots.update({numbers[slot]: slot for slot in used})
            missing = {numbers[slot] for slot in used} - here
            if not missing:
                return used
            came = self._decoder.frames(missing, take)
            here |= came
            self._decoder.damaged.update(missing - came)
            self._decoder.damaged -= came

    def _whole(self, slot: int) -> int:
        """The slot of the frame used for `slot`: `slot` itself if its frame is whole, else its replacement."""
        numbers, damaged = self.timeline.numbers, self._decoder.damaged
        for other in chain(range(slot, -1, -1), range(slot + 1, len(numbers))):
            if numbers[other] not in damaged:
                return other
        if not self._decoder.keep_corrupt:
            self._decoder.keep_corrupt = True
            damaged.clear()
            return slot
        raise self._hopeless()

    def _hopeless(self) -> BadMedia:
        return BadMedia(f"No frame of the clip can be decoded (codec {self._codec}).")


def _pixels(frame: VideoFrame) -> Image:
    """uint8 [height, width, 3], RGB, upright; transparency becomes white."""
    if any(component.is_alpha for component in frame.format.components):
        image = on_white(np.asarray(frame.reformat(format="rgba", threads=1).to_ndarray(), np.uint8))
    else:
        image = np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)
    return orientation.turn(image, orientation.of_frame(frame))
