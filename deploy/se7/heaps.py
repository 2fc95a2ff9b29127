#!/usr/bin/env python3
"""Say how a BM1684X box (SoC) splits its memory, whether a model fits, and what to set when it does not.

    deploy/se7/heaps.py /data/models/qwen2-vl-7b/qwen2-vl-7b.bmodel
    deploy/se7/heaps.py --need 9000

Exit code: 0, the model fits; 1, it does not; 2, the command line wants mending or the layout cannot be read.
It changes nothing. The box's own Python 3.8 runs it, without packages; as root it reads what memory_edit.sh -p
prints, as anyone else the device tree that the kernel was started with.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

MB = 1 << 20
HEAPS = ("npu", "vpu", "vpp")
# The runtime puts each block into the first heap with room for it, so no heap fills to its end; and a worker's own
# tensors come on top of what loading takes.
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


def read_layout(root: Path) -> tuple[dict[str, int], str]:
    """The heaps' sizes in bytes, and where they were read. A heap that the box does not have has 0."""
    for folder, read in ((root / "sys/kernel/debug/ion", _total_mem), (root / "proc/device-tree", _reserved)):
        sizes = {heap: read(folder, heap) for heap in HEAPS}
        if sizes["npu"]:
            return sizes, str(folder)
    raise Unreadable(
        "No heaps are to be found: this is no BM1684X box in SoC mode (a PCIe card has its own memory and needs none)."
    )


def _total_mem(folder: Path, heap: str) -> int:
    file = folder / f"bm_{heap}_heap_dump" / "total_mem"
    try:
        text = file.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return 0  # only root reads here
    if not text.isdigit():
        raise Unreadable(f"{file} holds {text[:40]!r}, which is no number of bytes.")
    return int(text)


def _reserved(folder: Path, heap: str) -> int:
    """From ion_npu_mem and its like: the nodes that memory_edit.sh writes."""
    return sum(_reg(file) for file in (folder / "reserved-memory").glob(f"ion_{heap}_mem*/reg"))


def _reg(file: Path) -> int:
    """The sizes in a `reg` of the device tree, added up: big-endian pairs of address and size, 64 bits each."""
    data = file.read_bytes()
    if not data or len(data) % 16:
        raise Unreadable(f"{file} has {len(data)} bytes, which are no pairs of address and size.")
    return sum(size for _, size in struct.iter_unpack(">QQ", data))


def box_mb(root: Path) -> int:
    """The memory of the whole box; that of an SE7 where the device tree does not say."""
    return sum(_reg(file) for file in (root / "proc/device-tree").glob("memory*/reg")) // MB or BOX_MB


def need_of(bmodel: Path) -> int:
    """The MB that loading `bmodel` takes, as `sailq model inspect` reads them from the file."""
    sailq = shutil.which("sailq")
    if sailq is None:
        raise Unreadable("There is no sailq here to inspect the bmodel: activate its environment, or give --need MB.")
    done = subprocess.run([sailq, "model", "inspect", "--json", str(bmodel)], capture_output=True)
    try:
        return math.ceil(json.loads(done.stdout)["device_bytes"] / MB)
    except (ValueError, KeyError, TypeError):
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing of device_bytes."]
        raise Unreadable(f"sailq model inspect could not say what {bmodel} needs: {why[-1]}") from None


def advice(want: int, box: int) -> str:
    """What to set so that the heaps hold `want` MB."""
    if box < BOX_MB:
        return (
            f"This box has {box} MB in all, and the known splits are for {BOX_MB} MB: `memory_edit.sh -p` prints the "
            "most that each heap can have here. A smaller model may be the way."
        )
    split = next((split for split in SPLITS if sum(split.values()) >= want), None)
    if split is None:
        return f"No split of {BOX_MB} MB holds {want} MB and leaves Linux enough: take a smaller model."
    left = box - SYSTEM_MB - sum(split.values())
    sizes = " ".join(f"-{heap} {split[heap]}" for heap in HEAPS)
    return f"""\
Set npu {split['npu']}, vpu {split['vpu']}, vpp {split['vpp']}: {sum(split.values())} MB, \
which leaves Linux about {left} MB. It takes effect when the box has restarted:

    cd /data && wget -nd {KIT}
    tar xf {KIT.rsplit('/', 1)[1]} && cd memory_edit
    ./memory_edit.sh -p
    ./memory_edit.sh -c {sizes}
    sudo cp /boot/emmcboot.itb /data/emmcboot.itb.before
    sudo cp emmcboot.itb /boot/emmcboot.itb && sync
    sudo reboot"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("bmodel", nargs="?", type=Path, help="the model; `sailq model inspect` says what it needs")
    model.add_argument("--need", type=int, metavar="MB", help="what the model needs, where it is known")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where /sys and /proc lie (for tests)")
    args = parser.parse_args()
    if args.need is not None and args.need <= 0:
        parser.error("--need is a number of MB above 0")
    try:
        heaps, where = read_layout(args.root)
        need = need_of(args.bmodel) if args.need is None else args.need
        box = box_mb(args.root)
    except (Unreadable, OSError) as error:
        print(f"heaps.py: {error}", file=sys.stderr)
        return 2

    total, want = sum(heaps.values()) // MB, need + SPARE_MB
    for heap in HEAPS:
        print(f"{heap}  {heaps[heap] // MB:6} MB")
    print(f"all  {total:6} MB, read from {where}")
    print(f"\nThe model needs {need} MB, and a worker {SPARE_MB} MB beside it: {want} MB.")
    if want <= total:
        print("It fits: nothing to set.")
        return 0
    print(f"It does not fit: {want - total} MB are missing.\n\n{advice(want, box)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
