#!/usr/bin/env python3
"""Print how a BM1684X box (SoC) splits its memory, whether a model fits, and what to set if it does not.

    deploy/se7/heaps.py /data/models/qwen2-vl-7b/qwen2-vl-7b.bmodel
    deploy/se7/heaps.py --need 9000

Exit code: 0, the model fits; 1, it does not; 2, usage error or the layout cannot be read.
It changes nothing. The box's own Python 3.8 runs it, without packages; as root it reads what memory_edit.sh -p
prints, as anyone else the device tree that the kernel was started with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

SHARED = Path(__file__).resolve().parents[2] / "worker" / "doctor" / "ion_heaps.py"
"""The code shared with `sailq doctor`, loaded from the same checkout, so that sailq need not be installed."""


def load(file: Path) -> ModuleType:
    """The module in `file`."""
    spec = importlib.util.spec_from_file_location("sailq_heaps", str(file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


try:
    heaps = load(SHARED)
except FileNotFoundError:
    print(f"heaps.py: {SHARED} is missing: this runs in a whole checkout of sailq.", file=sys.stderr)
    sys.exit(2)


def need_of(bmodel: Path) -> int:
    """The MB that loading `bmodel` takes, as `sailq model inspect` reads them from the file."""
    sailq = shutil.which("sailq")
    if sailq is None:
        raise heaps.Unreadable(
            "sailq is not on PATH, and only it can inspect the bmodel: activate its environment, or give --need MB."
        )
    done = subprocess.run([sailq, "model", "inspect", "--json", str(bmodel)], capture_output=True)
    try:
        return math.ceil(json.loads(done.stdout)["device_bytes"] / heaps.MB)
    except (ValueError, KeyError, TypeError):
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["its output has no device_bytes."]
        raise heaps.Unreadable(f"sailq model inspect could not tell what {bmodel} needs: {why[-1]}") from None


def advice(want: int, box: int) -> str:
    """The advice how to set the heaps so that they hold `want` MB."""
    try:
        split = heaps.split_for(want, box)
    except heaps.NoSplit as error:
        return str(error)
    sizes = ", ".join(f"{heap} {split[heap]}" for heap in heaps.HEAPS)
    commands = "\n    ".join(heaps.commands(split))
    return (
        f"Set {sizes}: {sum(split.values())} MB, which leaves Linux about {heaps.left_for_linux(split, box)} MB. "
        f"The box uses the new sizes after a restart:\n\n    {commands}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("bmodel", nargs="?", type=Path, help="the model; `sailq model inspect` reads its need")
    model.add_argument("--need", type=int, metavar="MB", help="memory that the model needs, if you know it")
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder of /sys and /proc (for tests)")
    args = parser.parse_args()
    if args.need is not None and args.need <= 0:
        parser.error("--need must be above 0")
    try:
        sizes, where = heaps.read_heaps(args.root)
        need = need_of(args.bmodel) if args.need is None else args.need
        box = heaps.box_mb(args.root)
    except (heaps.Unreadable, OSError) as error:
        print(f"heaps.py: {error}", file=sys.stderr)
        return 2

    total, want = sum(sizes.values()) // heaps.MB, need + heaps.SPARE_MB
    for heap in heaps.HEAPS:
        print(f"{heap}  {sizes[heap] // heaps.MB:6} MB")
    print(f"all  {total:6} MB, read from {where}")
    print(f"\nThe model needs {need} MB, and the worker another {heaps.SPARE_MB} MB: {want} MB in all.")
    if want <= total:
        print("It fits: no change is needed.")
        return 0
    print(f"It does not fit: {want - total} MB are missing.\n\n{advice(want, box)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
