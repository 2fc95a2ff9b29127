"""The check of `sailq doctor` for a machine with a gateway: its packages and its API keys."""

from __future__ import annotations

import os
import stat
from importlib.util import find_spec
from shlex import quote

from sailq.shared.checks import Check, Plan, Verdict, ok, skipped, warning, wrong
from sailq.shared.errors import BadRequest

from .keys import VARIABLE, Keys

FILE = "etc/sailq/gateway-keys.json"
"""Where deploy/gateway puts the keys."""
_PACKAGES = ("fastapi", "uvicorn", "uvloop", "httpx", "python_multipart", "prometheus_client")


def gateway(plan: Plan) -> Verdict:
    """Checks that the gateway's packages are installed, its keys are valid, and only root can add one."""
    path = plan.root / FILE
    in_file = VARIABLE not in os.environ
    if in_file and not path.exists():
        return skipped("no gateway is set up here")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return wrong(f"A gateway needs {' and '.join(missing)}.", "pip install 'sailq[gateway]'")
    if in_file and not os.access(path, os.R_OK):
        return skipped(f"this user may not read {path}")
    try:
        keys = Keys(path if in_file else None)
    except BadRequest as error:
        return wrong(str(error), "sailq gateway --new-key NAME  # prints a valid entry")
    if in_file and path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"Other users can add API keys: they may write to {path}."
        return warning(what, f"sudo chmod go-w {quote(str(path))}")
    return ok(f"API keys: {len(keys)}")


CHECKS = (Check("this machine", "gateway", gateway),)
