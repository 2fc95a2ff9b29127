"""Checks memory: the machine's for a model on its CPU, a box's heaps for a model on its TPU."""

from __future__ import annotations

import math
import re
from pathlib import Path

from rich.filesize import decimal

from sailq.shared.checks import Plan, Verdict, ok, skipped, warning, wrong
from sailq.shared.devices import CPU, is_box

from ..engine.engine import VISION_CACHE_BYTES
from ..model_files.bmodel import read_bmodel
from ..model_files.model_paths import resolve
from ..runners.devices import only_bmodel
from . import ion_heaps as layout

LIBRARIES_BYTES, WEIGHTS_TIMES = 190 * 10**6, 1.5
"""A worker's memory: bytes for libraries and jobs, and a factor for the weights, which ONNX Runtime rearranges, and for
what the nets compute. tests/bench/test_worker_memory.py measures it with float32 weights of 15 MB and of 1 GB."""
WORKER_BYTES = LIBRARIES_BYTES + VISION_CACHE_BYTES
"""A worker's memory without a model and with a full vision cache."""
_SMALLER = "sailq model list  # then choose a smaller one: sailq worker --model NAME"


def memory(plan: Plan) -> Verdict:
    """Checks that this machine has memory for a worker, and for the weights if its CPU runs the model."""
    available = _available(plan.root)
    if available is None:
        return skipped("this system does not say how much is available (no /proc/meminfo)")
    need = needed(resolve(plan.model)) if plan.device == CPU else WORKER_BYTES
    said = f"{decimal(available)} available; a worker needs about {decimal(need)}"
    if need <= available:
        return ok(said)
    if need > 2 * WORKER_BYTES:
        return wrong(f"{said}: the model is too large for this machine.", _SMALLER)
    return wrong(f"{said}: other programs use the rest.", "ps -eo rss,pid,args --sort=-rss | head")


def needed(directory: Path) -> int:
    """An estimate of the bytes that a worker with this model and a full vision cache takes on a CPU."""
    weights = directory / "onnx" / "weights.bin"
    return WORKER_BYTES + int(WEIGHTS_TIMES * (weights.stat().st_size if weights.is_file() else 0))


def heaps(plan: Plan) -> Verdict:
    """Checks that the bmodel and a worker's tensors fit into a box's heaps."""
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
    said = f"{total} MB ({shown}); the model needs {need} MB, and the worker another {layout.SPARE_MB} MB"
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
    """The available bytes of this machine, or of this container."""
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
    except (OSError, ValueError):  # no limit, or "max"
        return available
    return max(0, min(available, most - used))
