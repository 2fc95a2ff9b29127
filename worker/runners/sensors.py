"""What a BM1684X says of its own state, through SAIL.

SAIL up to 3.10.2 ignored what libsophon answered: where a reading failed there was whatever lay in memory. So what
cannot be true is left out. Later ones raise SailDeviceError (`src/tensor.cpp`): a sensor that fails is left out too.
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
    """One look at a device; None: not known.

    Attributes:
        utilization: share of the time, 0 to 1, that the TPU computed lately, by its driver.
        celsius: of the chip.
        memory_used, memory_total: bytes of the device's memory, all processes together.
    """

    utilization: float | None = None
    celsius: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None


def read(sail: Any, tpu: int) -> Readings | None:
    """The readings of a device that is open in this process; None where `sail` gives none (`runners.emulator`).

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
    """So many numbers that a sensor gives, or that cannot be true. SAIL's exceptions have no base but Exception."""
    try:
        said = [int(number) for number in sensor()]
    except Exception:
        said = []
    return said if len(said) == count else [-1] * count
