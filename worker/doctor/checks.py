"""All checks, in the order in which they run and are shown."""

from __future__ import annotations

from . import acl, clock, device, machine, memory, model, server
from .check import Check

_SERVER, _MODEL, _BMODEL = "server", "model", "bmodel"

CHECKS = (
    Check("this machine", "python", machine.python),
    Check("this machine", "packages", machine.packages, worker=True),
    Check("this machine", "disk", machine.disk, worker=True),
    Check("this machine", "metrics port", machine.metrics_port, worker=True),
    Check("this machine", "supervision", machine.supervision, worker=True),
    Check("the server", _SERVER, server.server),
    Check("the server", "rights", acl.rights, _SERVER),
    Check("the server", "version", server.version, _SERVER),
    Check("the server", "persistence", server.persistence, _SERVER),
    Check("the server", "server memory", server.memory, _SERVER),
    Check("the server", "round trip", server.round_trip, _SERVER),
    Check("the server", "clock", clock.clock, _SERVER),
    Check("the model", _MODEL, model.model, worker=True),
    Check("the model", _BMODEL, model.bmodel, _MODEL, worker=True),
    Check("the model", "memory", memory.memory, _MODEL, worker=True),
    Check("the device", "libsophon", device.libsophon, worker=True),
    Check("the device", "device files", device.files, worker=True),
    Check("the device", "SAIL", device.sail, worker=True),
    Check("the device", "heaps", memory.heaps, _BMODEL, worker=True),
)
