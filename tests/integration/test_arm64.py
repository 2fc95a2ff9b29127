"""sailq on arm64, a box's architecture: Debian 12, which qemu runs. Right answers, and no timings.

A box's Ubuntu 20.04 has an older C library than Debian 12: that each wheel fits it, too, is read from its name.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from debian import TREE, archive, environment, require, unpack
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.producer.samples import write_samples
from sailq.shared.connection import connect
from sailq.shared.workers import live_workers

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(7200)]
GLIBC_OF_A_BOX = 31
"""2.31."""
SAILQ = "/opt/sailq/bin/sailq"
CPU = "cortex-a53"
"""A box's: it has none of what Arm added to ARMv8.0."""
CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

"""
"""/proc/cpuinfo of that CPU. Debian 12's qemu shows this machine's own instead, and ONNX Runtime 1.32,
which finds no Arm CPU there, crashes as it is imported."""
ANSWER_SECONDS = 3600.0


class Arm64:
    """Debian 12 for arm64 below `root`, with sailq as `pip install 'sailq[cpu]'` leaves it, and this network."""

    def __init__(self, root: Path) -> None:
        self._root = root
        unpack(archive("arm64"), root)
        (root / "etc/cpuinfo").write_text(CPUINFO)
        packed = " ".join(f"/tree/{name}" for name in (
            "pyproject.toml", "README.md", "LICENSE", "shared", "producer", "worker", "operators", "sailq"))
        self.run("sh", "-ec", f"python3 -m venv /opt/sailq; mkdir /src; cp -r {packed} /src; "
                 "/opt/sailq/bin/pip install --no-compile --report /report.json '/src[cpu]'")
        self.installed = json.loads((root / "report.json").read_text())["install"]

    def command(self, *command: str) -> list[str]:
        """As process 2: of process 1, Linux drops the signals that a crash ends with, so it would never end."""
        variables = {**environment(), "QEMU_CPU": CPU}
        return [
            "systemd-nspawn", "--quiet", "--directory", str(self._root), "--register=no", "--keep-unit", "--pipe",
            "--as-pid2", f"--bind-ro={TREE}:/tree",
            *(f"--setenv={name}={value}" for name, value in variables.items()),
            "sh", "-ec", 'mount --bind /etc/cpuinfo /proc/cpuinfo; exec "$@"', "sh", *command,
        ]

    def run(self, *command: str) -> str:
        """Runs a command. Returns its output."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Arm64:
    require(arch_test="arch-test", mmdebstrap="mmdebstrap", systemd_nspawn="systemd-container")
    runs = subprocess.run(["arch-test", "arm64"], capture_output=True).returncode == 0
    assert runs, (
        "This needs a machine that runs programs for arm64: apt-get install qemu-user-static binfmt-support; "
        "update-binfmts --enable qemu-aarch64"
    )
    return Arm64(tmp_path_factory.mktemp("arm64") / "root")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_server() as server:
        yield server.url


def test_every_wheel_also_fits_a_box(machine: Arm64) -> None:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC_OF_A_BOX, 16, -1)] + ["manylinux2014_aarch64"]
    fits: set[Tag] = {
        *cpython_tags((3, 11), platforms=platforms), *compatible_tags((3, 11), interpreter="cp311", platforms=platforms)
    }
    names = [Path(unquote(urlsplit(one["download_info"]["url"]).path)).name for one in machine.installed]
    wheels = [name for name in names if name.endswith(".whl")]
    assert len(wheels) == len(names) - 1, "all but sailq itself are wheels"
    assert [name for name in wheels if not parse_wheel_filename(name)[3] & fits] == []
    binary = [name for name in wheels if not name.endswith("-any.whl")]
    assert binary and all("aarch64" in name for name in binary)
    print(f"\nfigure: wheels for arm64: {len(wheels)}, {len(binary)} of them binary; all fit glibc 2.{GLIBC_OF_A_BOX}")


def test_doctor_finds_all_that_a_worker_needs(machine: Arm64, url: str) -> None:
    examined = json.loads(machine.run(SAILQ, "doctor", "--for", "worker", "--json", "--redis-url", url))
    assert {one["state"] for one in examined} <= {"ok", "skipped", "warning"}, examined
    assert {"packages", "server"} <= {one["name"] for one in examined if one["state"] == "ok"}, examined


def test_a_worker_answers_correctly(machine: Arm64, url: str, tmp_path: Path) -> None:
    row = next(row for row in write_samples(7, 12, tmp_path) if row["task"] == "image")
    said = tmp_path / "worker.log"
    with connect(url) as connection, Client(url) as client, said.open("wb") as log:
        worker = subprocess.Popen(
            machine.command(SAILQ, "worker", "--redis-url", url), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        began = time.monotonic()
        try:
            handle = client.submit(row["messages"], base=tmp_path)
            while (result := client.result(handle.job)) is None:
                assert worker.poll() is None and time.monotonic() < began + ANSWER_SECONDS, said.read_text()
                time.sleep(0.5)
            took = time.monotonic() - began
            assert (result.error, result.text.strip()) == (None, row["answer"])
            (served,) = live_workers(connection)
            assert served.model == "sailq-tiny"
        finally:
            worker.terminate()  # SIGKILL would end systemd-nspawn alone
            worker.wait(300)
    print(f"\nfigure: a right caption on an emulated {CPU}, {took:.0f} s after the worker's start")
