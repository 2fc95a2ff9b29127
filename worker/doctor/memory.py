"""Memory: a machine's own for a model on its CPU, a box's heaps for one on its TPU."""

from __future__ import annotations

import math
import re
from pathlib import Path

from rich.filesize import decimal

from ..engine.engine import VISION_CACHE_BYTES
from ..model_files.bmodel import read_bmodel
from ..model_files.model_paths import resolve
from ..runners.devices import CPU, only_bmodel
from . import ion_heaps as layout
from .check import Plan, Verdict, ok, skipped, warning, wrong
from .device import is_box

LIBRARIES_BYTES, WEIGHTS_TIMES = 190 * 10**6, 2.2
"""What a worker takes: libraries and jobs; and its nets, whose weights ONNX Runtime keeps and partly copies. As
tests/bench/test_worker_memory.py measures it, of models with weights of 15 MB and of 1 GB."""
WORKER_BYTES = LIBRARIES_BYTES + VISION_CACHE_BYTES
"""Without a model. The vision cache fills as clips come."""
_SMALLER = "sailq model list  # and take a smaller one: sailq worker --model NAME"


def memory(plan: Plan) -> Verdict:
    """Enough of this machine's own for a worker, and for the weights where its CPU runs the model."""
    available = _available(plan.root)
    if available is None:
        return skipped("this system does not say how much is available (no /proc/meminfo)")
    need = needed(resolve(plan.model)) if plan.device == CPU else WORKER_BYTES
    said = f"{decimal(available)} available, a worker takes about {decimal(need)}"
    if need <= available:
        return ok(said)
    if need > 2 * WORKER_BYTES:
        return wrong(f"{said}: the model is too large for this machine.", _SMALLER)
    return wrong(f"{said}: something else takes the rest.", "ps -eo rss,pid,args --sort=-rss | head")


def needed(directory: Path) -> int:
    """The bytes that a worker with this model takes on a CPU, its vision cache full; an estimate."""
    weights = directory / "onnx" / "weights.bin"
    return WORKER_BYTES + int(WEIGHTS_TIMES * (weights.stat().st_size if weights.is_file() else 0))


def heaps(plan: Plan) -> Verdict:
    """A box's heaps hold the bmodel and a worker's tensors."""
    if not plan.on_tpu:
        return skipped(f"for a TPU; this is for {plan.device}")
    if not is_box(plan.root):
        return skipped("a PCIe card has its own memory: bm-smi shows it")
    need = math.ceil(_bmodel_bytes(plan) / layout.MB)
    try:
        sizes, _ = layout.read_heaps(plan.root)
        box = layout.box_mb(plan.root)
    except layout.Unreadable as error:
        return warning(str(error), "memory_edit.sh -p")
    total, want = sum(sizes.values()) // layout.MB, need + layout.SPARE_MB
    shown = ", ".join(f"{heap} {size // layout.MB}" for heap, size in sizes.items())
    said = f"{total} MB ({shown}); the model takes {need} MB, and a worker {layout.SPARE_MB} MB beside it"
    if want <= total:
        return ok(said)
    try:
        split = layout.split_for(want, box)
    except layout.NoSplit as error:
        return wrong(f"{said}: {want - total} MB are missing. {error}", _SMALLER)
    set_to = ", ".join(f"{heap} {size}" for heap, size in split.items())
    return wrong(f"{said}: {want - total} MB are missing. Set {set_to}.", "\n".join(layout.commands(split)))


def _bmodel_bytes(plan: Plan) -> int:
    return read_bmodel(plan.bmodel or only_bmodel(resolve(plan.model))).device_bytes


def _available(root: Path) -> int | None:
    """Bytes, of this machine or of the container that this is."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        return None
    available = int(found[1]) * 1024
    group = root / "sys/fs/cgroup"
    try:
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # none, or "max"
        return available
    return max(0, min(available, most - used))
