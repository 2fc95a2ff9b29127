"""What a box shows of its memory."""

from __future__ import annotations

import struct
from pathlib import Path

MB = 1 << 20
AS_SHIPPED = {"npu": 3950, "vpu": 2048, "vpp": 3072}
RECOMMENDED = {"npu": 7615, "vpu": 2048, "vpp": 2048}


def ion(root: Path, heaps: dict[str, int | str]) -> Path:
    """debugfs as memory_edit.sh and get_info of sophgo/sophon-tools read it: bytes in `total_mem`.

    4141875200, 2147483648 and 3221225472 bytes (3950, 2048 and 3072 MB) are in the manual of the BM1684X EVB,
    sophgo/bootloader-arm64, docs/bm1684x, "6.11 查询内存用量".
    """
    for heap, held in heaps.items():
        folder = root / "sys/kernel/debug/ion" / f"bm_{heap}_heap_dump"
        folder.mkdir(parents=True)
        (folder / "total_mem").write_text(held if isinstance(held, str) else f"{held * MB}\n")
    return root


def device_tree(root: Path, heaps: dict[str, int], banks: tuple[int, ...] = (4096, 4096, 4096, 4096)) -> Path:
    """/proc/device-tree as memory_edit.sh writes it: `ion_npu_mem { reg = <0x1 0x24100000 0x1 0xdbf00000>; }`.

    The npu's node is that of bm1684x_sm7m_v0.0_mm0.dts in sophgo/linux-arm64 (7615 MB); `banks` stands for the `reg`
    of its memory node, which get_info of sophgo/sophon-tools adds up to 16384 MB on an SE7.
    """
    nodes = {f"reserved-memory/ion_{heap}_mem": [(0x1_2410_0000, size)] for heap, size in heaps.items()}
    nodes["reserved-memory/vpu_mem"] = [(0x3_2000_0000, 128)]  # the firmware's, which is no heap
    nodes["memory"] = [(0x1_0000_0000, size) for size in banks]
    for node, extents in nodes.items():
        folder = root / "proc/device-tree" / node
        folder.mkdir(parents=True)
        (folder / "reg").write_bytes(b"".join(struct.pack(">QQ", start, size * MB) for start, size in extents))
    return root
