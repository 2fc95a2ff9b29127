"""All checks, in the order in which they run and are shown."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version

from sailq.shared.checks import Check, Plan, Verdict, ok, wrong

from . import acl, clock, server

GROUP = "sailq.checks"
OLDEST_PYTHON = (3, 10)
_SERVER, _VERSION = "server", "version"


def python(plan: Plan) -> Verdict:
    said = f"Python {sys.version.split()[0]}, sailq {version('sailq')}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return wrong(f"{said}: sailq needs Python 3.10 or newer.", "uv venv --seed --python 3.11 sailq-env")
    return ok(said)


CHECKS = (
    Check("this machine", "python", python),
    Check("the server", _SERVER, server.server),
    Check("the server", _VERSION, server.version, _SERVER),
    Check("the server", "rights", acl.rights, _VERSION),
    Check("the server", "persistence", server.persistence, _SERVER),
    Check("the server", "server memory", server.memory, _SERVER),
    Check("the server", "round trip", server.round_trip, _SERVER),
    Check("the server", "clock", clock.clock, _SERVER),
)


def all_checks() -> list[Check]:
    """`CHECKS`, and those that other packages offer, with all checks of one subject together."""
    found = [*CHECKS, *(check for entry in entry_points(group=GROUP) for check in entry.load())]
    subjects = list(dict.fromkeys(check.subject for check in found))
    return sorted(found, key=lambda check: subjects.index(check.subject))
