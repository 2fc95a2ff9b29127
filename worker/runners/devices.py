"""Opens the runner for a device name, as given to `sailq worker --device`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sailq.shared.devices import CPU, EMULATOR, check_device
from sailq.shared.errors import Unsupported

from ..engine.model import ModelSpec
from .base import Runner

DEFAULT_SLOTS = 8
"""The number of slots of a runner that can have any number."""


def open_runner(
    spec: ModelSpec, device: str = CPU, *, bmodel: Path | None = None, slots: int | None = None,
    threads: int | None = None,
) -> Runner:
    """Load a model on a device.

    Args:
        device: "cpu" (ONNX Runtime), "tpu:N" (the Nth BM1684X, through SAIL) or "emulator" (its C model).
        bmodel: the file to load on a TPU; None: the one in the model's directory.
        slots: answers decoded together; None: as many as the bmodel has, or 8 on a CPU.
        threads: number of CPU threads; None: as many as speed this model up.

    Raises:
        Unsupported: no such device, its libraries are missing, or the model cannot be served on it.
    """
    check_device(device)
    if device == CPU:
        if bmodel is not None:
            raise Unsupported(f"{bmodel} is for a TPU: name its device, as in --device tpu:0.")
        from .onnx import OnnxRunner  # a box has no ONNX Runtime

        return OnnxRunner(spec, slots=slots or DEFAULT_SLOTS, threads=threads)
    from .sail import SailRunner

    file = bmodel or only_bmodel(spec.directory)
    if device == EMULATOR:
        from . import emulator

        return SailRunner(spec, file, emulator, slots=slots)
    return SailRunner(spec, file, _sail(), tpu=int(device.partition(":")[2] or 0), slots=slots)


def only_bmodel(directory: Path) -> Path:
    """The bmodel in a model's directory. Raises Unsupported if it contains none or several."""
    files = sorted(directory.glob("*.bmodel"))
    if not files:
        raise Unsupported(f"{directory} contains no bmodel: get one with deploy/models/compile.sh or download.sh.")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise Unsupported(f"{directory} contains {len(files)} bmodels: choose one of {names}.")
    return files[0]


def _sail() -> Any:
    try:
        return importlib.import_module("sophon.sail")
    except ImportError as error:
        raise Unsupported(
            f"--device tpu needs SAIL for this Python ({error}): deploy/se7/README.md says how to install it; "
            "without a TPU, use --device emulator."
        ) from None
