"""Checks the TPU's driver, device files and SAIL. Opens no TPU: a worker may be using it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys

from sailq.shared.checks import Plan, Verdict, ok, skipped, warning, wrong
from sailq.shared.devices import is_box

OLDEST = (0, 5, 1)
"""libsophon of V24.04.01."""
NEWEST_PYTHON = (3, 11)
"""The newest Python that SAIL can be built for."""
_SAIL_SECONDS = 15.0
_LIBRARIES = "/opt/sophon/libsophon-current"
_FLASH = (
    "python3 -m dfss --url=open@sophgo.com:sophon-sdk/release/v24.04.01/sophon-img/sdcard.tgz"
    "  # flashing erases the box"
)
_INSTALL_SAIL = "pip install dfss\npython -m dfss --install sail"
_SAIL_FIXES = (
    ("No module named", _INSTALL_SAIL),
    ("cannot open shared object file", f"export LD_LIBRARY_PATH={_LIBRARIES}/lib"),
    ("", f"pip uninstall --yes sophon\n{_INSTALL_SAIL}"),
)
"""The fix for each error text of the import; deploy/se7/README.md explains them."""


def libsophon(plan: Plan) -> Verdict:
    """Checks that libsophon's version is one that SAIL and the worker are known to work with."""
    if not plan.on_tpu:
        return _no_tpu(plan)
    folder = plan.root / _LIBRARIES.lstrip("/")
    if not folder.exists():
        install = "sudo dpkg -i sophon-driver_*_amd64.deb sophon-libsophon_*_amd64.deb"
        return wrong(f"{_LIBRARIES} is missing: libsophon is not installed, or not mounted into this container.",
                     f"docker run -v /opt/sophon:/opt/sophon:ro …  # or {install}" if _contained(plan) else
                     _FLASH if is_box(plan.root) else install)
    found = re.search(r"libsophon-(\d+)\.(\d+)\.(\d+)", str(folder.resolve()))
    if found is None:
        return warning(f"{_LIBRARIES} does not show its version.", "bm_version")
    version = ".".join(found.groups())
    if tuple(map(int, found.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return wrong(f"libsophon {version} is older than {oldest}, of V24.04.01, which SAIL is built against.", _FLASH)
    return ok(version)


def files(plan: Plan) -> Verdict:
    """Checks that each device file exists and that this user may use it."""
    if not plan.on_tpu:
        return _no_tpu(plan)
    names = ("bm-tpu0", "bmdev-ctl", "ion") if is_box(plan.root) else (f"bm-sophon{plan.tpu}", "bmdev-ctl")
    for name in names:
        file = plan.root / "dev" / name
        if not file.exists():
            if _contained(plan):
                return wrong(f"/dev/{name} is not in this container.", f"docker run --device /dev/{name} …")
            return wrong(f"/dev/{name} is missing: no such TPU, or its driver is not loaded.",
                         "sudo modprobe bmsophon\nsudo dmesg | grep -i -e bmdrv -e sophon | tail")
        if not os.access(file, os.R_OK | os.W_OK):
            mode = stat.filemode(file.stat().st_mode)
            return wrong(f"/dev/{name} is {mode}: this user may not use it.", f"sudo chmod a+rw /dev/{name}")
    return ok(", ".join(f"/dev/{name}" for name in names))


def sail(plan: Plan) -> Verdict:
    """Checks, in a child process, that this Python can import SAIL and that it can run language models."""
    if not plan.on_tpu:
        return _no_tpu(plan)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from sophon import sail; sail.EngineLLM"], capture_output=True, text=True,
            errors="replace", timeout=_SAIL_SECONDS, stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return wrong(f"Importing SAIL takes longer than {_SAIL_SECONDS:g} s: the chip hangs.", "sudo reboot")
    if done.returncode == 0:
        return ok("imports, with EngineLLM")
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    newest = ".".join(map(str, NEWEST_PYTHON))
    if sys.version_info[:2] > NEWEST_PYTHON:
        return wrong(f"SAIL cannot be built for a Python newer than {newest}: {said}.",
                     f"uv venv --seed --python {newest} /data/sailq-env")
    fix = next(fix for sign, fix in _SAIL_FIXES if sign in said)
    return wrong(f"SAIL does not work with this Python: {said}", fix)


def _no_tpu(plan: Plan) -> Verdict:
    return skipped(f"for a TPU; this is for {plan.device}")


def _contained(plan: Plan) -> bool:
    return (plan.root / ".dockerenv").exists() or (plan.root / "run/.containerenv").exists()
