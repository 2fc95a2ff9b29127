"""All checks of a machine that runs jobs, in the order in which they run and are shown."""

from __future__ import annotations

from sailq.shared.checks import Check

from . import device, machine, memory, model

_MODEL, _BMODEL = "model", "bmodel"

CHECKS = (
    Check("this machine", "packages", machine.packages, worker=True),
    Check("this machine", "disk", machine.disk, worker=True),
    Check("this machine", "metrics port", machine.metrics_port, worker=True),
    Check("this machine", "supervision", machine.supervision, worker=True),
    Check("the model", _MODEL, model.model, worker=True),
    Check("the model", _BMODEL, model.bmodel, _MODEL, worker=True),
    Check("the model", "memory", memory.memory, _MODEL, worker=True),
    Check("the device", "libsophon", device.libsophon, worker=True),
    Check("the device", "device files", device.files, worker=True),
    Check("the device", "SAIL", device.sail, worker=True),
    Check("the device", "heaps", memory.heaps, _BMODEL, worker=True),
)
