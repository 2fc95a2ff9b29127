"""What a BM1684X says of its own state, through SAIL.

SAIL (3.10, `src/tensor.cpp`) ignores what libsophon answers: where a reading fails there is whatever lay in memory. So
what cannot be true is left out.
"""

from __future__ import annotations

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
    try:
        total, used, percent = sail.get_dev_stat(tpu)
        celsius = sail.get_chip_temp(tpu)
    except RuntimeError:  # SAIL's own errors
        return None
    memory = 0 < total <= _MOST_MEGABYTES and 0 <= used <= total
    return Readings(
        utilization=percent / 100 if 0 <= percent <= 100 else None,
        celsius=celsius if 0 < celsius < _MOST_CELSIUS else None,
        memory_used=used * _MB if memory else None,
        memory_total=total * _MB if memory else None,
    )
