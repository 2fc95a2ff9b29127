"""How a BM1684X box (SoC) splits its memory into heaps, and what to set so that a model fits.

deploy/se7/heaps.py loads this file by its path, on a box that has Python 3.8 and no sailq yet. So it imports only the
standard library and uses nothing newer than Python 3.8.
"""

from __future__ import annotations

import struct
from pathlib import Path

MB = 1 << 20
HEAPS = ("npu", "vpu", "vpp")
# The runtime puts each block into the first heap with room for it, so some space at the end of a heap stays unused. A
# worker's own tensors need memory besides what the model's loading takes.
SPARE_MB = 512
BOX_MB = 16384
# Firmware, and what the kernel keeps: on a box with heaps of 11639 MB, get_info showed 3707 MB of system memory.
SYSTEM_MB = 1038
# Sophgo's split for Qwen2-VL 7B, and one for larger models. 7615 and 4096 are the most that memory_edit.sh gives a
# box of 16 GB.
SPLITS = ({"npu": 7615, "vpu": 2048, "vpp": 2048}, {"npu": 7615, "vpu": 2048, "vpp": 4096})
KIT = "https://github.com/sophgo/sophon-tools/releases/download/v24.09.21/memory_edit_v2.10.tar.xz"


class Unreadable(Exception):
    """Its text is one sentence for the user."""


class NoSplit(Exception):
    """Its text is one or two sentences for the user."""


def read_heaps(root: Path) -> tuple[dict[str, int], str]:
    """The heaps' sizes in bytes, and the path they were read from. The size of a missing heap is 0."""
    for folder, read in ((root / "sys/kernel/debug/ion", _total_mem), (root / "proc/device-tree", _reserved)):
        sizes = {heap: read(folder, heap) for heap in HEAPS}
        if sizes["npu"]:
            return sizes, str(folder)
    raise Unreadable(
        "No heaps found: this is not a BM1684X box in SoC mode (a PCIe card has its own memory)."
    )


def _total_mem(folder: Path, heap: str) -> int:
    file = folder / f"bm_{heap}_heap_dump" / "total_mem"
    try:
        text = file.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return 0  # only root may read here
    if not text.isdigit():
        raise Unreadable(f"{file} holds {text[:40]!r}, which is not a number of bytes.")
    return int(text)


def _reserved(folder: Path, heap: str) -> int:
    """The size of a heap in bytes, from a device-tree node that memory_edit.sh writes, such as ion_npu_mem."""
    return sum(_reg(file) for file in (folder / "reserved-memory").glob(f"ion_{heap}_mem*/reg"))


def _reg(file: Path) -> int:
    """The sum of the sizes in a `reg` of the device tree, which is a list of (address, size), big-endian, 64 bits
    each."""
    data = file.read_bytes()
    if not data or len(data) % 16:
        raise Unreadable(f"{file} has {len(data)} bytes, which is not a list of (address, size) pairs.")
    return sum(size for _, size in struct.iter_unpack(">QQ", data))


def box_mb(root: Path) -> int:
    """The memory of the whole box in MB; that of an SE7 if the device tree does not state it."""
    return sum(_reg(file) for file in (root / "proc/device-tree").glob("memory*/reg")) // MB or BOX_MB


def split_for(want: int, box: int) -> dict[str, int]:
    """The MB of each heap in a known split of `box` MB into which a model of `want` MB fits. Raises NoSplit."""
    if box < BOX_MB:
        raise NoSplit(
            f"This box has {box} MB of memory, and the known splits are for {BOX_MB} MB: `memory_edit.sh -p` prints "
            "the maximum size of each heap here. Consider a smaller model."
        )
    for split in SPLITS:
        if sum(split.values()) >= want:
            return split
    raise NoSplit(f"No split of {BOX_MB} MB has heaps of {want} MB and leaves enough for Linux: use a smaller model.")


def left_for_linux(split: dict[str, int], box: int) -> int:
    """About how many MB a split leaves for Linux."""
    return box - SYSTEM_MB - sum(split.values())


def commands(split: dict[str, int]) -> list[str]:
    """Shell commands that set the heaps on the box and restart it."""
    sizes = " ".join(f"-{heap} {split[heap]}" for heap in HEAPS)
    return [
        f"cd /data && wget -nd {KIT}",
        f"tar xf {KIT.rsplit('/', 1)[1]} && cd memory_edit",
        "./memory_edit.sh -p",
        f"./memory_edit.sh -c {sizes}",
        "sudo cp /boot/emmcboot.itb /data/emmcboot.itb.before",
        "sudo cp emmcboot.itb /boot/emmcboot.itb && sync",
        "sudo reboot",
    ]
