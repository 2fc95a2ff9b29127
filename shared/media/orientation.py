"""Turns a video's frames upright."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import cast

import numpy as np
import numpy.typing as npt
from av import VideoFrame
from av.sidedata.sidedata import SideData, Type

Matrix = tuple[int, int, int, int]
"""(a, b, c, d) of FFmpeg's display matrix: a pixel at column x, row y is shown at (a x + c y, b x + d y)."""
UPRIGHT = (1, 0, 0, 1)


def _unnamed(kind: type[Type], value: int) -> Type:
    """An enum member for side data that PyAV does not know (EXIF, LCEVC, view numbers). Without it, PyAV raises for all
    side data."""
    member = object.__new__(kind)
    vars(member).update(_name_=f"TYPE_{value}", _value_=value)
    return member


setattr(Type, "_missing_", classmethod(_unnamed))  # noqa: B010 - mypy takes it for a method


def of_frame(frame: VideoFrame) -> Matrix:
    """The display matrix that the container, the stream or its EXIF gives a frame; `UPRIGHT` without one."""
    found = [bytes(one) for one in cast(Iterable[SideData], frame.side_data) if one.type == Type.DISPLAYMATRIX]
    if not found:
        return UPRIGHT
    a, b, _, c, d = struct.unpack("=5i", found[0][:20])
    return a, b, c, d


def swaps_sides(matrix: Matrix) -> bool:
    """Whether the matrix swaps height and width."""
    a, b, c, d = matrix
    return abs(a) + abs(d) < abs(b) + abs(c)


def turn(image: npt.NDArray[np.uint8], matrix: Matrix) -> npt.NDArray[np.uint8]:
    """`image` [height, width, ...] as it is shown: quarter turns and mirrors; other angles become the nearest."""
    a, b, c, d = matrix
    if swaps_sides(matrix):
        image, right, down = np.swapaxes(image, 0, 1), c, b
    else:
        right, down = a, d
    return image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
