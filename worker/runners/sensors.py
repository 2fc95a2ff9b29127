"""Reads the sensors of a BM1684X through SAIL.

SAIL up to 3.10.2 ignored libsophon's status, so a failed reading returned random memory. Impossible values are dropped
for this reason. Later versions raise SailDeviceError (`src/tensor.cpp`); such a reading is dropped too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_MB = 1 << 20
_MOST_MEGABYTES = 1 << 20
"""No chip has a terabyte."""
_MOST_CELSIUS = 150


@dataclass(frozen=True)
class Readings:
    """The readings of a device. None: unknown.

    Attributes:
        utilization: share of recent time that the TPU was busy, 0 to 1, by its driver.
        celsius: temperature of the chip.
        memory_used, memory_total: bytes of the device's memory, all processes together.
    """

    utilization: float | None = None
    celsius: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None


def read(sail: Any, tpu: int) -> Readings | None:
    """The readings of a device that is open in this process; None if `sail` has none (`runners.emulator`).

    `get_dev_stat` gives MB, MB and per cent, `get_chip_temp` degrees.
    """
    if not hasattr(sail, "get_dev_stat"):
        return None
    total, used, percent = _ask(lambda: sail.get_dev_stat(tpu), 3)
    (celsius,) = _ask(lambda: [sail.get_chip_temp(tpu)], 1)
    memory = 0 < total <= _MOST_MEGABYTES and 0 <= used <= total
    return Readings(
        utilization=percent / 100 if 0 <= percent <= 100 else None,
        celsius=celsius if 0 < celsius < _MOST_CELSIUS else None,
        memory_used=used * _MB if memory else None,
        memory_total=total * _MB if memory else None,
    )


def _ask(sensor: Callable[[], Sequence[int]], count: int) -> list[int]:
    """The `count` numbers that a sensor gives; impossible ones if it fails. SAIL's exceptions have no common base."""
    try:
        said = [int(number) for number in sensor()]
    except Exception:
        said = []
    return said if len(said) == count else [-1] * count
