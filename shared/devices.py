"""The names of the devices that run a model, and whether this machine has a TPU."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import Unsupported

CPU, EMULATOR = "cpu", "emulator"
NAMES = (CPU, "tpu:N", EMULATOR)
_TPU = re.compile(r"tpu(:\d{1,3})?")


def check_device(device: str) -> None:
    """Raises Unsupported if `device` is not the name of a device."""
    if device not in (CPU, EMULATOR) and not _TPU.fullmatch(device):
        raise Unsupported(f"Unknown device {device!r}; the devices are {', '.join(NAMES)}.")


def is_box(root: Path) -> bool:
    """Whether this machine is a BM1684X in SoC mode. A TPU elsewhere is on a PCIe card.

    `root`: the folder that holds /dev and /proc.
    """
    return (root / "dev/bm-tpu0").exists() or any((root / "proc/device-tree/reserved-memory").glob("ion_npu_mem*"))


def has_tpu(root: Path) -> bool:
    return is_box(root) or (root / "dev/bm-sophon0").exists()
