"""deploy/se7 on a booted machine: setup.sh as an operator runs it, and each row of the service's table in
deploy/se7/README.md. The unit is as shipped, but for what a drop-in of a test says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from flashed import MODEL, SLOTS, UNIT, Server, break_device, setup
from machine import Machine, Service, until

from sailq.operators.fleet import Fleet
from sailq.producer.client import Client
from sailq.producer.samples import write_samples
from sailq.shared.connection import connect
from sailq.shared.workers import WorkerInfo, live_workers

pytestmark = [pytest.mark.box, pytest.mark.timeout(3600)]
QUICK = {"RestartSec": "100ms"}
"""In a drop-in. That the unit's own is 10 s, and what comes of it, is a test of its own."""
Setup = subprocess.CompletedProcess[str]


def workers(server: Server) -> list[WorkerInfo]:
    with connect(server.url) as connection:
        return live_workers(connection)


def announced(pid: str, server: Server) -> bool:
    """Whether the service's process has said on the server that it takes jobs. A killed one's record stays for 20 s."""
    return int(pid) in {worker.pid for worker in workers(server)}


def start_asking(server: Server, folder: Path) -> tuple[str, str]:
    """A job that asks about a sample, and its right answer."""
    row = next(row for row in write_samples(7, 12, folder) if row["task"] == "image")
    with Client(server.url) as client:
        return client.submit(row["messages"], model=MODEL, base=folder).job, row["answer"]


def answers(server: Server, asked: tuple[str, str]) -> bool:
    with Client(server.url) as client:
        result = client.wait(asked[0], timeout=240)
    return (result.error, result.text.strip()) == (None, asked[1])


def ended(service: Service, before: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """How its processes ended since `before`."""
    return until(lambda: service.ends()[len(before):], f"an end of {service.name}")


def test_a_flashed_box_takes_jobs_after_setup(box: Machine, set_up: Setup, server: Server, tmp_path: Path) -> None:
    assert set_up.returncode == 0, set_up.stdout + set_up.stderr
    service = Service(box, UNIT)
    assert (service["ActiveState"], service["UnitFileState"], service["NRestarts"]) == ("active", "enabled", "0")
    assert (service["User"], service["MainPID"] != "0") == ("sailq", True)
    (worker,) = workers(server)
    assert (worker.model, worker.slots, worker.device) == (MODEL, SLOTS, "BM1684X, device 0")
    assert answers(server, start_asking(server, tmp_path))
    again = setup(box)
    assert again.returncode == 0 and "does " not in again.stdout, again.stdout + again.stderr
    assert service["NRestarts"] == "0" and [one.name for one in workers(server)] == [worker.name]


def test_systemd_applies_the_units_limits(service: Service) -> None:
    with open("/proc/meminfo") as lines:
        memory = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    assert abs(int(service["MemoryMax"]) - 0.85 * memory) < 0.01 * memory
    found = {name: service[name] for name in (
        "Type", "Restart", "RestartUSec", "RestartPreventExitStatus", "WatchdogUSec", "TimeoutStartUSec",
        "TimeoutStopUSec", "StartLimitIntervalUSec", "DevicePolicy",
    )}
    assert found == {
        "Type": "notify", "Restart": "always", "RestartUSec": "10s", "RestartPreventExitStatus": "2",
        "WatchdogUSec": "1min", "TimeoutStartUSec": "15min", "TimeoutStopUSec": "1min 30s",
        "StartLimitIntervalUSec": "0", "DevicePolicy": "closed",
    }


def test_a_worker_retries_an_unreachable_server_every_10_seconds(
    service: Service, server: Server, tmp_path: Path
) -> None:
    before = service.ends()
    server.stop()
    try:
        service.systemctl("restart", "--no-block")
        until(lambda: service.ends()[len(before):].count(("exited", "1")) >= 2, "two tries that fail")
        assert ("exited", "2") not in ended(service, before)
        service.wait_for("ActiveState", "activating")
        failed_at = int(service["ExecMainExitTimestampMonotonic"] or 0)
        pid = service["ExecMainPID"]
    finally:
        server.start()
    service.wait_for("ActiveState", "active")
    if service["ExecMainPID"] != pid:
        assert int(service["ExecMainStartTimestampMonotonic"]) - failed_at >= 9_900_000
    assert answers(server, start_asking(server, tmp_path))


def test_a_worker_whose_device_fails_its_self_test_is_restarted(box: Machine, service: Service, server: Server) -> None:
    before = service.ends()
    service.drop_in(**QUICK)
    break_device(box, "noise")
    assert service.systemctl("restart", check=False) != 0
    assert ("exited", "1") in ended(service, before) and workers(server) == []
    break_device(box, "")
    service.wait_for("ActiveState", "active")
    assert announced(service["MainPID"], server)


def test_wrong_settings_cause_no_restart(box: Machine, service: Service) -> None:
    before = service.ends()
    service.drop_in(**QUICK)
    settings = box.root / "etc/sailq/worker.env"
    right = settings.read_text()
    settings.write_text(right.replace(MODEL, "none"))
    try:
        assert service.systemctl("restart", check=False) != 0
        assert (service["ActiveState"], service["SubState"], service["ExecMainStatus"]) == ("failed", "failed", "2")
    finally:
        settings.write_text(right)
    assert service["NRestarts"] == "0" and ended(service, before) == [("exited", "2"), ("result", "exit-code")]
    service.systemctl("start")


@pytest.mark.parametrize("fault", ["fail", "hold"])
def test_a_device_call_that_fails_or_does_not_return_ends_the_worker_which_is_started_again(
    box: Machine, service: Service, server: Server, tmp_path: Path, fault: str
) -> None:
    """In this test, a call that does not return ends the worker after 5 s."""
    before = service.ends()
    command = "/data/sailq-env/bin/sailq worker --device tpu:0 --drain-seconds 60"
    assert f"argv[]={command} ;" in service["ExecStart"]
    service.drop_in(**QUICK, ExecStart=f"{command} --device-timeout 5")
    service.systemctl("restart")
    pid = service["MainPID"]
    break_device(box, fault)
    asked = start_asking(server, tmp_path)
    assert ended(service, before)[0] == ("exited", "3")
    break_device(box, "")
    service.wait_for_start_after(pid)
    assert answers(server, asked)


def test_a_process_that_is_stuck_is_killed_after_a_minute_and_started_again(service: Service, server: Server) -> None:
    before, pid = service.ends(), service["MainPID"]
    service.drop_in(**QUICK)
    service.systemctl("kill", "--signal=STOP")
    assert ended(service, before)[0] == ("killed", "9")
    until(lambda: ("result", "watchdog") in service.ends()[len(before):], "the watchdog's verdict")
    service.wait_for_start_after(pid)


def test_a_killed_worker_is_started_again(service: Service, server: Server, tmp_path: Path) -> None:
    before, pid = service.ends(), service["MainPID"]
    service.drop_in(**QUICK)
    service.systemctl("kill", "--signal=KILL")
    service.wait_for_start_after(pid)
    assert ended(service, before) == [("killed", "9"), ("result", "signal")]
    assert answers(server, start_asking(server, tmp_path))


def test_a_worker_that_takes_too_much_memory_is_killed_and_started_again(
    box: Machine, service: Service, server: Server, tmp_path: Path
) -> None:
    """The limit in this test is 1 GB."""
    before = service.ends()
    service.drop_in(**QUICK, MemoryMax="1G")
    service.systemctl("restart")
    pid = service["MainPID"]
    break_device(box, "leak")
    asked = start_asking(server, tmp_path)
    assert ended(service, before)[0] == ("killed", "9")
    break_device(box, "")
    service.wait_for_start_after(pid)
    assert answers(server, asked)


def test_it_is_ready_when_it_takes_jobs(box: Machine, service: Service, server: Server) -> None:
    service.systemctl("stop")
    break_device(box, "hold")
    service.systemctl("start", "--no-block")
    service.wait_for("StatusText", f"loading {MODEL}")
    assert service["ActiveState"] == "activating" and not announced(service["MainPID"], server)
    break_device(box, "")
    service.wait_for("ActiveState", "active")
    assert announced(service["MainPID"], server)


def test_a_stop_lets_running_jobs_finish(box: Machine, service: Service, server: Server, tmp_path: Path) -> None:
    before, pid = service.ends(), service["MainPID"]
    break_device(box, "hold")
    asked = start_asking(server, tmp_path)
    with connect(server.url) as connection:
        until(lambda: [queue.started for queue in Fleet(connection).snapshot().queues] == [1], "a claim")
    service.systemctl("stop", "--no-block")
    service.wait_for("ActiveState", "deactivating")
    break_device(box, "")
    service.wait_for("ActiveState", "inactive")
    assert (service["Result"], service["ExecMainStatus"], service.ends()) == ("success", "0", before)
    assert answers(server, asked) and not announced(pid, server)


def test_it_opens_the_tpus_devices_and_writes_nothing_else(box: Machine, service: Service) -> None:
    """A shell in the worker's place tries to open and write files."""
    before = service.ends()
    script = box.root / "data/ask.sh"
    script.write_text("#!/bin/sh\ntrue <>/dev/ion && ! touch /data/written && ! true <>/dev/not-named && exit 42\n")
    script.chmod(0o755)
    service.drop_in(**QUICK, ExecStart="/data/ask.sh", RestartPreventExitStatus="42")
    service.systemctl("restart", check=False)
    assert ended(service, before)[0] == ("exited", "42")


def test_it_survives_a_reboot(box: Machine, service: Service, server: Server, tmp_path: Path) -> None:
    before = {worker.name for worker in workers(server)}
    box.reboot()
    service.wait_for("ActiveState", "active")
    (after,) = [worker for worker in workers(server) if worker.name not in before]
    assert after.pid == int(service["MainPID"]) and service["NRestarts"] == "0"
    assert answers(server, start_asking(server, tmp_path))
    assert os.stat(box.root / "etc/sailq/worker.env").st_mode & 0o777 == 0o600
