"""Checks a worker's machine: Python packages, disk, the metrics port, and the supervisor that restarts a worker."""

from __future__ import annotations

import errno
import shutil
import socket
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

from rich.filesize import decimal

from sailq.shared import keys
from sailq.shared.checks import Plan, Verdict, ok, skipped, warning, wrong
from sailq.shared.devices import CPU, has_tpu
from sailq.shared.errors import Unsupported

from ..model_files.model_paths import resolve

LEAST_DISK = 10**9
"""Bytes: logs, packages and a container's layers grow."""
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_UNIT = "sailq-worker*.service"
_NEARBY = 100
_METRICS_SECONDS, _MOST_METRICS = 3.0, 1 << 20


def packages(plan: Plan) -> Verdict:
    """Checks that the packages that only a worker needs are installed."""
    extra = "cpu" if plan.device == CPU else "tpu"
    needed = ("tokenizers", "jinja2", "llguidance", *(("onnxruntime",) if plan.device == CPU else ()))
    found, missing = [], []
    for name in needed:
        if find_spec(name):
            found.append(f"{name} {_version(name)}".strip())
        else:
            missing.append(name)
    if missing:
        return wrong(f"A worker for {plan.device} needs {' and '.join(missing)}.", f"pip install 'sailq[{extra}]'")
    return ok(", ".join(found))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return ""


def disk(plan: Plan) -> Verdict:
    """Checks for free space on the disk that holds the model."""
    try:
        place = resolve(plan.model)
    except Unsupported:
        place = Path.cwd()
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        return wrong(f"{decimal(free)} are free at {place}; at least {decimal(LEAST_DISK)} should be.",
                     "sudo journalctl --vacuum-size=100M\npip cache purge")
    return ok(f"{decimal(free)} free at {place}")


def metrics_port(plan: Plan) -> Verdict:
    """Checks that the port for metrics can be bound, or that a worker already uses it."""
    port = plan.metrics_port
    if not port:
        return skipped("no metrics port is set")
    problem = _problem(port)
    if problem is None:
        return ok(f"{port} is free")
    if _shows_metrics(port):
        return ok(f"{port} is a worker's, which runs already")
    other = next((near for near in range(max(port, 1023) + 1, 65536)[:_NEARBY] if _problem(near) is None), None)
    if problem.errno == errno.EADDRINUSE:
        why = f"Port {port} is in use by another program."
    else:
        why = f"Port {port} cannot be bound: {problem.strerror}."
    if other is None:
        return wrong(why, f"ss --listening --tcp --processes 'sport = :{port}'")
    return wrong(why, f"sailq worker --metrics-port {other}")


def _problem(port: int) -> OSError | None:
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like HTTP servers
            listener.bind(("", port))
            listener.listen()
    except OSError as error:
        return error
    return None


def _shows_metrics(port: int) -> bool:
    link = HTTPConnection("127.0.0.1", port, timeout=_METRICS_SECONDS)
    try:
        link.request("GET", "/metrics")
        return keys.PREFIX.encode() in link.getresponse().read(_MOST_METRICS)
    except (OSError, HTTPException):
        return False
    finally:
        link.close()


def supervision(plan: Plan) -> Verdict:
    """Checks that a supervisor starts the worker at boot and restarts it when it ends."""
    if not (plan.root / "run/systemd/system").exists():
        return skipped("no systemd here; a container's restart policy starts the worker")
    units = sorted({file.name for folder in _UNITS for file in (plan.root / folder).glob(_UNIT)})
    if not units:
        if not has_tpu(plan.root):
            return skipped("no systemd unit: a worker here ends with the shell that started it")
        return warning("Nothing starts a worker when this machine starts: deploy/se7 has a unit that does.",
                       "sudo deploy/se7/setup.sh --env worker.env --model " + quote(plan.model))
    enabled = sorted(file.name for file in (plan.root / _UNITS[0]).glob(f"*.wants/{_UNIT}"))
    if not enabled:
        return warning(f"{units[0]} exists, but is not enabled to start with the machine.",
                       f"sudo systemctl enable --now {units[0].replace('@.', f'@{plan.tpu}.')}")
    return ok(", ".join(enabled))
