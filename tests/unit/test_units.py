"""The systemd units of deploy/, by systemd's own tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from commands import invoke

from sailq.producer.gateway.server import DRAIN_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.rglob("*.service"))
GATEWAY = DEPLOY / "gateway/sailq-gateway.service"


@pytest.mark.parametrize("shipped", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_a_unit_and_rates_it_safe(shipped: Path, tmp_path: Path) -> None:
    program = tmp_path / "sailq"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / shipped.name.replace("@", "@0")
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", shipped.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit]
    rated = subprocess.run(command, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]


def test_the_gateways_unit_has_options_that_exist_and_waits_for_its_answers() -> None:
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)", GATEWAY.read_text()))
    _, command, *rest = settings["ExecStart"].split()
    text = invoke(command, "--help").stdout
    options = [word for word in rest if word.startswith("--")]
    assert options and all(option in text for option in options)
    assert f"--files /var/lib/{settings['StateDirectory']}" in settings["ExecStart"]
    assert float(settings["TimeoutStopSec"]) > DRAIN_SECONDS + 10
    assert settings["Restart"] == "always" and settings["RestartPreventExitStatus"] == "2"
