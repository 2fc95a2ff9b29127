"""A flashed box in a folder: what is its hardware is stood in for, the tools that set it up are real.

Stand-ins: bm_version, the device nodes and the device tree, SAIL's wheel, and uv, which would fetch a Python; its
environment here sees the packages of the tests' own. pip builds and installs sailq as on a box.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

TREE = Path(__file__).parents[1]
SETUP = TREE / "deploy/se7/setup.sh"
UNIT = "sailq-worker@.service"
BMODEL = TREE / "tests/data/nets.bmodel"
MB = 1 << 20
AS_SHIPPED = {"npu": 3950, "vpu": 2048, "vpp": 3072}
RECOMMENDED = {"npu": 7615, "vpu": 2048, "vpp": 2048}

UV = f"""#!/bin/sh
# Stands in for uv venv: no Python is fetched, and the environment sees the tests' packages.
for folder; do :; done
{sys.executable} -m venv --without-pip "$folder"
echo {sysconfig.get_path("purelib")} > "$(echo "$folder"/lib/python*/site-packages)"/of-the-tests.pth
"""
BM_VERSION = """#!/bin/sh
# Stands in for bm_version: what it prints on a box with V23.09 LTS-SP3.
echo "SophonSDK version: v23.09 LTS-SP3"
echo "sophon-soc-libsophon : {libsophon}"
echo "sophon-soc-libsophon-dev : {libsophon}"
"""


def ion(root: Path, heaps: dict[str, int | str]) -> Path:
    """debugfs as memory_edit.sh and get_info of sophgo/sophon-tools read it: bytes in `total_mem`.

    4141875200, 2147483648 and 3221225472 bytes (3950, 2048 and 3072 MB) are in the manual of the BM1684X EVB,
    sophgo/bootloader-arm64, docs/bm1684x, "6.11 查询内存用量".
    """
    for heap, held in heaps.items():
        folder = root / "sys/kernel/debug/ion" / f"bm_{heap}_heap_dump"
        folder.mkdir(parents=True)
        (folder / "total_mem").write_text(held if isinstance(held, str) else f"{held * MB}\n")
    return root


def device_tree(root: Path, heaps: dict[str, int], banks: tuple[int, ...] = (4096, 4096, 4096, 4096)) -> Path:
    """/proc/device-tree as memory_edit.sh writes it: `ion_npu_mem { reg = <0x1 0x24100000 0x1 0xdbf00000>; }`.

    The npu's node is that of bm1684x_sm7m_v0.0_mm0.dts in sophgo/linux-arm64 (7615 MB); `banks` stands for the `reg`
    of its memory node, which get_info of sophgo/sophon-tools adds up to 16384 MB on an SE7.
    """
    nodes = {f"reserved-memory/ion_{heap}_mem": [(0x1_2410_0000, size)] for heap, size in heaps.items()}
    nodes["reserved-memory/vpu_mem"] = [(0x3_2000_0000, 128)]  # memory of the firmware, not a heap
    nodes["memory"] = [(0x1_0000_0000, size) for size in banks]
    for node, extents in nodes.items():
        folder = root / "proc/device-tree" / node
        folder.mkdir(parents=True)
        (folder / "reg").write_bytes(b"".join(struct.pack(">QQ", start, size * MB) for start, size in extents))
    return root


def sail_wheel(folder: Path, module: str) -> Path:
    """A wheel in `folder` that stands in for SAIL's, with this text as `sophon.sail`."""
    path = folder / "stand_in_for_sail-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("sophon/sail.py", module)
        info = "stand_in_for_sail-1.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: stand-in-for-sail\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


class Box:
    """A flashed box below `root`, a server that it reaches, and what its operator brings."""

    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    """Nothing is fetched."""

    def __init__(self, folder: Path, server: str) -> None:
        """`server`: its URL."""
        missing = [name for name in ("systemctl", "systemd-sysusers", "curl") if not shutil.which(name)]
        assert not missing, f"there is no {', '.join(missing)}: apt install systemd curl"
        self.root, self.bin, self.folder = folder / "box", folder / "bin", folder
        self.bin.mkdir(parents=True)
        device_tree(self.root, RECOMMENDED)
        for node in ("bm-tpu0", "bmdev-ctl", "ion"):
            self.node(node)
        self.command("bm_version", BM_VERSION.format(libsophon="0.5.1"))
        self.command("uv", UV)
        self.env = folder / "worker.env"
        self.env.write_text(f"SAILQ_REDIS_URL={server}\nSAILQ_RESULT_TTL=3600\n")
        self.model("seen-7b")
        self.wheel = sail_wheel(folder, "EngineLLM = object  # stands in for SAIL\n")

    def node(self, name: str, mode: int = 0o666) -> None:
        node = self.root / "dev" / name
        node.parent.mkdir(exist_ok=True)
        node.touch()
        node.chmod(mode)

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def model(self, name: str) -> str:
        """Makes a model directory on the box. Returns its path there."""
        directory = self.root / "data/models" / name
        directory.mkdir(parents=True)
        for file in resolve("sailq-tiny").glob("*.json"):
            shutil.copy(file, directory)
        shutil.copy(BMODEL, directory)
        return f"/data/models/{name}"

    def arguments(self, *arguments: str) -> list[str]:
        return [str(SETUP), "--root", str(self.root), *arguments]

    def first(self) -> list[str]:
        return ["--env", str(self.env), "--model", "/data/models/seen-7b", "--sail", str(self.wheel)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", **self.pip}

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.arguments(*arguments), env=self.environment, capture_output=True, text=True, timeout=290
        )

    def stopped_at(self, line: str, *arguments: str) -> None:
        """Kills it, and all that it has started, when it prints what begins with `line`."""
        started = subprocess.Popen(
            self.arguments(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )
        assert started.stdout
        said = []
        for said_line in started.stdout:
            said.append(said_line)
            if said_line.startswith(line):
                os.killpg(started.pid, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, "".join(said)

    def files(self) -> dict[str, int]:
        """The files that setup.sh manages, each with its modification time."""
        return {
            str(path.relative_to(self.root)): path.lstat().st_mtime_ns
            for folder in ("etc", "data") for path in (self.root / folder).rglob("*") if not path.is_dir()
        }
