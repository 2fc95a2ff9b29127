"""What `sailq doctor` says of a gateway's machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gateways import key_file

from sailq.operators.doctor.checks import all_checks
from sailq.producer.gateway.checks import FILE, gateway
from sailq.producer.gateway.keys import VARIABLE
from sailq.shared.checks import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / FILE).parent.mkdir(parents=True)
    return Plan(redis_url="redis://h/0", model="m", worker=False, device="cpu", bmodel=None, metrics_port=0,
                root=tmp_path)


def test_doctor_has_the_check() -> None:
    assert gateway in [check.look for check in all_checks()]


def test_a_machine_without_a_gateway_is_not_checked(plan: Plan) -> None:
    assert gateway(plan).state == "skipped"


def test_valid_keys_are_counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    file = key_file(plan.root / FILE, cameras={"rate": 5}, alarms={})
    file.chmod(0o640)
    assert (gateway(plan).state, gateway(plan).what) == ("ok", "API keys: 2")
    text = file.read_text()
    file.unlink()
    monkeypatch.setenv(VARIABLE, text)
    assert gateway(plan).what == "API keys: 2"


def test_keys_that_the_gateway_refuses_are_wrong(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file(plan.root / FILE, cameras={"rate": -1})
    found = gateway(plan)
    assert found.state == "wrong" and FILE in found.what and "cameras.rate" in found.what
    monkeypatch.setenv(VARIABLE, "sk-secret")
    found = gateway(plan)
    assert found.state == "wrong" and VARIABLE in found.what and "sk-secret" not in found.what


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_to_which_others_may_write_is_a_warning(plan: Plan, mode: int) -> None:
    file = key_file(plan.root / FILE, cameras={})
    file.chmod(mode)
    found = gateway(plan)
    assert (found.state, found.fix) == ("warning", f"sudo chmod go-w {file}")


def test_missing_packages_are_wrong(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file(plan.root / FILE, cameras={})
    monkeypatch.setitem(sys.modules, "fastapi", None)
    found = gateway(plan)
    assert (found.state, found.fix) == ("wrong", "pip install 'sailq[gateway]'") and "fastapi" in found.what
