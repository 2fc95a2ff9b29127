"""deploy/se7/setup.sh below a folder of its own: the tools are real, and what is the box's hardware is stood in for.
See `boxes.Box`."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from boxes import AS_SHIPPED, BM_VERSION, SETUP, UNIT, Box, device_tree

from sailq.shared.main import USAGE_ERROR
from sailq.worker.process.watchdog import EXIT_CODE

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port on which a server listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.fixture
def box(tmp_path: Path, port: int) -> Box:
    return Box(tmp_path, f"redis://worker:secret@127.0.0.1:{port}/0")


@pytest.mark.proof
def test_a_flashed_box_becomes_a_worker_whatever_interrupts_it(box: Box) -> None:
    for line in ("does  a Python", "does  sailq from", "does  SAIL", "does  model", "does  " + str(box.root)):
        box.stopped_at(line, *box.first())
    done = box.setup(*box.first())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr

    settings = box.root / "etc/sailq/worker.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert settings.read_text() == box.env.read_text() + "SAILQ_MODEL=/data/models/seen-7b\n"
    assert "sailq:x:" in (box.root / "etc/passwd").read_text()
    (enabled,) = (box.root / "etc/systemd/system/multi-user.target.wants").iterdir()
    assert (enabled.name, os.readlink(enabled)) == ("sailq-worker@0.service", f"/etc/systemd/system/{UNIT}")
    assert (box.root / "etc/systemd/system" / UNIT).read_text() == (TREE / "deploy/se7" / UNIT).read_text()
    helped = subprocess.run([box.root / "data/sailq-env/bin/sailq", "worker", "--help"], capture_output=True)
    assert helped.returncode == 0
    assert [path for path in box.files() if path.endswith(".new")] == []

    before = box.files()
    again = box.setup()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "does " not in again.stdout and box.files() == before

    new = box.setup("--model", box.model("seen-7b-v2"))
    assert new.returncode == 0, new.stderr
    assert "does  model /data/models/seen-7b-v2" in new.stdout and "sailq from" not in new.stdout
    assert settings.read_text() == box.env.read_text() + "SAILQ_MODEL=/data/models/seen-7b-v2\n"


@pytest.mark.proof
def test_uv_and_packages_are_installed_as_on_a_box(box: Box) -> None:
    (box.bin / "uv").unlink()
    box.pip = {}
    done = box.setup(*box.first())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does  uv" in done.stdout or shutil.which("uv")


def test_failed_checks_print_their_fixes_and_change_nothing(box: Box) -> None:
    box.command("bm_version", BM_VERSION.format(libsophon="0.4.9"))
    box.node("ion", 0o600)
    shutil.rmtree(box.root / "proc")
    device_tree(box.root, AS_SHIPPED)
    box.command("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 1 1 500000 1%% /\\n'\n")
    box.command("date", "#!/bin/sh\n# A box without a battery for its clock.\nexec /bin/date -d @1000000 \"$@\"\n")
    box.env.write_text("SAILQ_REDIS_URL=rediss://worker:secret@127.0.0.1:1/0?ssl_ca_certs=/etc/sailq/ca.crt\n")
    before = box.files()
    for check in ([], ["--check"]):
        done = box.setup(*box.first(), *check)
        assert done.returncode == 1 and done.stderr.startswith("stop: 6 "), done.stdout + done.stderr
        for fact in (
            "0.4.9", "chmod a+rw /dev/ion", "442 MB", "heaps.py --need 9000", "488 MB", "1970-01-12",
            "timedatectl set-ntp true", "127.0.0.1:1",
        ):
            assert fact in done.stdout, (fact, done.stdout)
        assert done.stdout.count("fix: ") == 6 and "secret" not in done.stdout + done.stderr
    assert box.files() == before


def test_a_missing_authority_is_found_by_the_checks(box: Box, port: int) -> None:
    box.env.write_text(f"SAILQ_REDIS_URL=rediss://worker:x@127.0.0.1:{port}/0?ssl_ca_certs=/no/ca.crt\n")
    done = box.setup("--check", *box.first())
    assert done.returncode == 1 and "/no/ca.crt" in done.stdout
    (box.folder / "ca.crt").touch()
    assert box.setup("--check", *box.first()).returncode == 0


def test_a_machine_with_cards_has_a_worker_for_each_chip_and_no_heaps(box: Box) -> None:
    for path in ("proc", "dev"):
        shutil.rmtree(box.root / path)
    for node in ("bm-sophon0", "bm-sophon1", "bmdev-ctl"):
        box.node(node)
    box.command("bm_version", "#!/bin/sh\nexit 127\n")
    (box.root / "opt/sophon").mkdir(parents=True)
    (box.root / "opt/sophon/libsophon-current").symlink_to("libsophon-0.5.2")
    done = box.setup("--check", *box.first())
    assert done.returncode == 0, done.stdout
    assert "libsophon 0.5.2" in done.stdout and "TPU 0 1: /dev/bm-sophon0 /dev/bm-sophon1" in done.stdout
    assert "heaps" not in done.stdout


def test_a_process_that_has_opened_the_tpu_is_named(box: Box) -> None:
    with (box.root / "dev/bm-tpu0").open():
        done = box.setup("--check", *box.first())
    assert done.returncode == 0 and f"process {os.getpid()}," in done.stdout
    assert str(os.getpid()) not in box.setup("--check", *box.first()).stdout


def test_a_missing_tpu_is_reported(box: Box) -> None:
    shutil.rmtree(box.root / "dev")
    done = box.setup("--check", *box.first())
    assert done.returncode == 1 and "TPU" in done.stdout and done.stderr.startswith("stop: 1 ")


START = f"""
set -euo pipefail
. {SETUP}
root=$PWD data=/data environment=$PWD/env chips=(0 1) units=(sailq-worker@0 sailq-worker@1)
systemctl() {{ echo "systemctl $*" >> calls; [[ " $* " != *" ${{FAIL:-no}} "* ]]; }}
setpriv() {{ shift 3; "$@"; }}
start_workers
"""
DOCTOR = """#!/bin/sh
# Stands in for sailq.
[ "$2" != --help ] || exit 0
echo "$* $SAILQ_REDIS_URL $SAILQ_MODEL" >> calls
[ "$FAIL" != doctor ]
"""


@pytest.mark.parametrize("fail", ["no", "doctor", "restart"])
def test_a_worker_is_restarted_after_a_change_if_doctor_passes(
    fail: str, tmp_path: Path
) -> None:
    """systemd does not run here: a function stands in for its systemctl."""
    for folder in ("data", "env/bin", "etc/sailq"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "env/bin/sailq").write_text(DOCTOR)
    (tmp_path / "env/bin/sailq").chmod(0o755)
    (tmp_path / "etc/sailq/worker.env").write_text("SAILQ_REDIS_URL=redis://h/0?a=1&b=2\nSAILQ_MODEL=/m/one\n")
    (tmp_path / "etc/sailq/worker-1.env").write_text("SAILQ_MODEL=/m/two\n")
    marker = tmp_path / "data/sailq-changed"
    marker.touch()

    def start() -> tuple[subprocess.CompletedProcess[str], list[str]]:
        done = subprocess.run(
            ["bash", "-c", START], cwd=tmp_path, env={**os.environ, "FAIL": fail}, capture_output=True, text=True
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return done, calls

    done, calls = start()

    examined = [f"doctor --device tpu:{chip} redis://h/0?a=1&b=2 /m/{name}" for chip, name in ((0, "one"), (1, "two"))]
    restarted = ["systemctl restart sailq-worker@0 sailq-worker@1"]
    if fail == "doctor":
        assert done.returncode == 1 and "sailq doctor" in done.stderr
        assert calls == ["systemctl daemon-reload", examined[0]] and marker.exists()
        return
    assert calls == ["systemctl daemon-reload", *examined, *restarted]
    if fail == "restart":
        assert done.returncode == 1 and "journalctl -n 30 -u sailq-worker@0" in done.stderr and marker.exists()
        return
    assert done.returncode == 0 and not marker.exists()
    assert start()[1] == ["systemctl daemon-reload", "systemctl start sailq-worker@0 sailq-worker@1"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--fast"], "--fast"), (["--model"], "--model"), ([], "etc/sailq/worker.env"),
        (["--data", "here"], "--data"), (["--env", "/dev/null", "--model", "m"], "SAILQ_REDIS_URL"),
    ],
)
def test_a_usage_error_is_refused(box: Box, arguments: list[str], named: str) -> None:
    done = box.setup(*arguments)
    assert done.returncode == 2 and named in done.stderr and done.stderr.startswith("setup.sh: "), done.stderr


def test_help_has_examples() -> None:
    done = subprocess.run([SETUP, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "sudo deploy/se7/setup.sh --env worker.env" in done.stdout


def test_the_units_timeouts_and_exit_codes_match_the_workers() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(TREE / "deploy/se7" / UNIT)
    service = unit["Service"]
    drain = float(service["ExecStart"].split("--drain-seconds ")[1])
    assert float(service["TimeoutStopSec"]) > drain + 10
    assert float(service["WatchdogSec"]) > 10 * 1.0  # the worker's watchdog runs at least once a second
    assert service["Restart"] == "always" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    prevented = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert prevented == {USAGE_ERROR} and EXIT_CODE not in prevented
