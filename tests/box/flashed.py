"""A flashed box below a folder, with its operator's files. Only its hardware is faked."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from bmodel_files import qwen2_vl, write_bmodel
from boxes import BM_VERSION, RECOMMENDED, ion, sail_wheel
from debian import archive, unpack
from machine import Machine

from sailq.producer.embedded import embedded_server
from sailq.worker.model_files.model_paths import resolve

UNIT = "sailq-worker@0.service"
MODEL, WHEEL = "seen-7b", "stand_in_for_sail-1-py3-none-any.whl"
SLOTS = 4
NODES = "".join(f"c /dev/{name} 0666 root root - 10:229\n" for name in ("bm-tpu0", "bmdev-ctl", "ion")) + (
    "c /dev/not-named 0666 root root - 10:200\n"
)
"""tmpfiles.d(5), in place of a box's udev rules: devices that everyone may open. Their numbers are those of fuse and
tun, which a service whose DevicePolicy= is closed may not open unless it names them."""


class Server:
    """A server on a port of 127.0.0.1, which the box shares."""

    def __init__(self, port: int) -> None:
        self.port, self._running = port, ExitStack()

    def start(self) -> None:
        self.url = self._running.enter_context(embedded_server(port=self.port)).url

    def stop(self) -> None:
        self._running.close()


def flash(folder: Path, port: int) -> tuple[Path, Path]:
    """The files of a box, in /data those of its operator, whose server has this port; and its debugfs."""
    root = folder / "root"
    unpack(archive(), root)
    (root / "usr/bin/bm_version").write_text(BM_VERSION.format(libsophon="0.5.1"))
    (root / "usr/bin/bm_version").chmod(0o755)
    libsophon = root / "opt/sophon/libsophon-0.5.1/lib"
    libsophon.mkdir(parents=True)
    (root / "opt/sophon/libsophon-current").symlink_to("libsophon-0.5.1")
    (root / "opt/sophon/fault").write_text("")
    (root / "etc/tmpfiles.d/tpu.conf").write_text(NODES)
    (root / "data").mkdir()
    (root / "data/worker.env").write_text(f"SAILQ_REDIS_URL=redis://127.0.0.1:{port}/0\nSAILQ_METRICS_PORT=0\n")
    assert sail_wheel(root / "data", (Path(__file__).parent / "sail.py").read_text()).name == WHEEL
    model = root / "data/models" / MODEL
    shutil.copytree(resolve("sailq-tiny"), model)
    nets = qwen2_vl(layers=3, slots=SLOTS, context=512, prompts=(256,), patches=(64,), dtype="f32")
    write_bmodel(model / "seen.bmodel", nets)
    return root, ion(folder / "heaps", dict(RECOMMENDED)) / "sys/kernel/debug"


def setup(box: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs /data/sailq/deploy/se7/setup.sh in the box."""
    given = ("--env", "/data/worker.env", "--model", f"/data/models/{MODEL}", "--sail", f"/data/{WHEEL}")
    return box.run("/data/sailq/deploy/se7/setup.sh", *given, *arguments, check=False, seconds=1500)


def break_device(box: Machine, fault: str) -> None:
    """See sail.py; "" is none."""
    (box.root / "opt/sophon/fault").write_text(fault)
