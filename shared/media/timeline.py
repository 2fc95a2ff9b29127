"""Finds when each frame of a clip is shown, and which frames the time options keep.

Counts, rates and durations in containers are often wrong or missing. Timestamps are what players use.
"""

from __future__ import annotations

import statistics
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fractions import Fraction

from av.video.stream import VideoStream

from ..errors import BadMedia
from . import sizing
from .packets import NONE, Packets
from .sizing import Options


@dataclass(frozen=True)
class Timeline:
    """A clip's frames in the order in which they are shown; a frame's slot is its place in that order.

    Attributes:
        numbers: each frame's packet.
        ticks: when each frame is shown, ascending, in ticks of `base` seconds.
        rate: frames a second, if all intervals are within one tick of their median; else None.
    """

    numbers: Sequence[int]
    ticks: Sequence[int]
    base: Fraction
    rate: Fraction | None

    def seconds(self, slot: int) -> float:
        """When a frame is shown, counted from the clip's first: at a constant rate as qwen-vl-utils counts, and not in
        the container's ticks, which may be milliseconds."""
        at = (self.ticks[slot] - self.ticks[0]) * self.base if self.rate is None else slot / self.rate
        return round(float(at), 6)

    def without(self, lost: Container[int], stream: VideoStream) -> Timeline:
        """The timeline of the frames whose packets are not among `lost`."""
        kept = [slot for slot, number in enumerate(self.numbers) if number not in lost]
        return _timeline([self.numbers[slot] for slot in kept], [self.ticks[slot] for slot in kept], stream)

    def choose(self, options: Options, group: int) -> tuple[list[int], float | None]:
        """(slots of the frames to keep, kept frames a second). Raises BadRequest for what the clip cannot meet.

        At a constant rate these are the frames that qwen-vl-utils keeps. At any other, times are spread evenly as it
        spreads frame numbers, and the frame for a time is the last one with a timestamp not after it. The only frame of
        a clip is repeated, without a rate. `group`: see `sizing.group_of`.
        """
        total = len(self.ticks)
        if total == 1:
            return [0] * sizing.frame_count(options, group, 1.0, group), None
        if self.rate is None:
            return sizing.frame_slots(options, [tick - self.ticks[0] for tick in self.ticks], self.base, group)
        slots = sizing.frame_indices(options, total, float(self.rate), group)
        first, last = sizing.frame_range(options, total, float(self.rate))
        return slots, len(slots) / (last - first + 1) * float(self.rate)


def from_packets(packets: Packets, stream: VideoStream, reorders: bool) -> Timeline | None:
    """The timeline that the packets' timestamps give; None if the order of the frames cannot be told from them.

    `reorders`: whether frames may be shown in another order than they are stored.
    """
    first = next(iter(packets.keys), None)
    if first is None:
        return None  # without a key frame, only decoding shows which frames exist
    stamps = packets.pts
    if NONE in stamps:
        if reorders or NONE in packets.dts:
            return None
        stamps = packets.dts
    numbers = [number for number in range(first, len(packets)) if number not in packets.hidden]
    ticks = _continuous(packets, stamps, numbers, round(1 / stream.time_base) if stream.time_base else 1)
    order = sorted(range(len(numbers)), key=lambda at: (ticks[at], at))
    return _timeline([numbers[at] for at in order], [ticks[at] for at in order], stream)


def from_order(packets: Packets, stream: VideoStream, numbers: Sequence[int], stored: Sequence[int]) -> Timeline:
    """The timeline of packets without timestamps whose frames are decoded in this order.

    `stored`: as many packets, whose timestamps are in the order of the file, as those of AVI are.
    """
    for stamps in (packets.pts, packets.dts):
        ticks = sorted(stamps[number] for number in stored)
        if ticks and ticks[0] != NONE and len(set(ticks)) == len(ticks):
            return _timeline(numbers, ticks, stream)
    return _by_count(numbers, stream)


def _by_count(numbers: Sequence[int], stream: VideoStream) -> Timeline:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return Timeline(numbers, range(len(numbers)), 1 / rate, rate)


def _continuous(packets: Packets, stamps: Sequence[int], numbers: Sequence[int], second: int) -> list[int]:
    """The timestamps of `numbers`, without the jumps back where a recorder set its clock or files were joined.

    A key frame is shown after all frames that are stored before it. What follows a jump begins one median interval
    later. `second`: in ticks.
    """
    keys, ticks = set(packets.keys), list[int]()
    shift, newest, begin = 0, None, 0
    for number in numbers:
        tick = stamps[number] + shift
        if newest is not None and number in keys and newest - tick > second:
            steps = _intervals(sorted(ticks[begin:]))
            begin = len(ticks)
            moved = newest + (statistics.median_low(steps) if steps else 1)
            shift, tick = shift + moved - tick, moved
        newest = tick if newest is None else max(newest, tick)
        ticks.append(tick)
    return ticks


def _intervals(ticks: Sequence[int]) -> list[int]:
    return [after - before for before, after in zip(ticks, ticks[1:], strict=False)]


def _timeline(numbers: Sequence[int], ticks: Sequence[int], stream: VideoStream) -> Timeline:
    base = stream.time_base
    if base is None or not numbers:
        raise BadMedia("The clip contains no frames.")
    steps = _intervals(ticks)
    if not steps or ticks[0] == ticks[-1]:
        return _by_count(numbers, stream)
    median = statistics.median_low(steps)
    span = (ticks[-1] - ticks[0]) * base
    if max(steps) - median > 1 or median - min(steps) > 1:
        return Timeline(numbers, ticks, base, None)
    for stated in (stream.average_rate, stream.guessed_rate):
        # The exact rate, such as 30000/1001, if it agrees with the timestamps.
        if stated and abs(len(steps) / stated - span) <= base:
            return Timeline(numbers, ticks, base, stated)
    return Timeline(numbers, ticks, base, len(steps) / span)
