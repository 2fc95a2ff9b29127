"""Finds the display order of the frames of a clip without timestamps. Only the decoder knows it, so packets near the
wanted frames are decoded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import overload

from .decoding import Decoder
from .packets import Packets


class Shown(Sequence[int]):
    """The numbers of a clip's packets in the order in which their frames are shown.

    Frames are reordered between two key frames, or across one where they are shown before it. So the packet of a slot
    is found by decoding its group and the one before. A packet that gives no frame keeps its place.
    """

    def __init__(self, packets: Packets, decoder: Decoder, stored: Sequence[int]) -> None:
        """`stored`: the packets that give a frame each, in the order of the file; the first is a key frame."""
        self._keys, self._decoder, self._stored = list(packets.keys), decoder, stored
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._stored)

    @overload
    def __getitem__(self, slot: int) -> int: ...
    @overload
    def __getitem__(self, slot: slice) -> Sequence[int]: ...
    def __getitem__(self, slot: int | slice) -> int | Sequence[int]:
        if isinstance(slot, slice):
            return [self[one] for one in range(*slot.indices(len(self)))]
        if not 0 <= slot < len(self):
            raise IndexError(slot)
        if slot not in self._known:
            self._learn(slot)
        return self._known[slot]

    def _learn(self, slot: int) -> None:
        """Decodes the group of the packet at this place in the file, and as many groups before it as needed."""
        at, back = bisect_right(self._keys, self._stored[slot]) - 1, 1
        last = self._keys[at + 1] - 1 if at + 1 < len(self._keys) else self._stored[-1]
        while slot not in self._known:
            first = self._keys[max(at - back, 0)]
            self._place(first, last, self._decoder.order(first, last), final=at - back <= 0)
            back *= 2

    def _place(self, first: int, last: int, order: Sequence[int], final: bool) -> None:
        start, end = bisect_left(self._stored, first), bisect_right(self._stored, last)
        stored = self._stored[start:end]
        here = set(order) & set(stored)
        if first in here and first != self._stored[0]:
            while start + 1 < end and self._stored[start + 1] not in here:
                start += 1  # shown before `first`: it refers to an earlier group
            stored = [first, *self._stored[start + 1 : end]]
        if not final and not here.issuperset(stored):
            return  # damaged, not a true key frame, or this decoder does not return all frames from here
        shown = iter(number for number in order if number in here)
        for place, number in enumerate(stored, start):
            self._known[place] = next(shown) if number in here else number


def leading(packets: Packets, decoder: Decoder) -> set[int] | None:
    """The packets after the first key frame whose frames refer to packets before it. These frames are lost.

    None if a packet of the first two groups is not a frame: then the order must be found by decoding all.
    """
    first, *others = packets.keys[:3]
    last = others[1] - 1 if len(others) > 1 else len(packets) - 1
    came, number = set(decoder.order(first, last)), first + 1
    while number <= last and number not in came:
        number += 1
    ahead = set(range(first + 1, number))
    lost = set(range(first, last + 1)) - came - ahead - decoder.damaged - packets.hidden
    return ahead if first in came and not lost else None
