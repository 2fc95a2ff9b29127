"""Runs `sailq doctor` as a script does and its fixes as a person would paste them, and makes machines to examine."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from commands import SECONDS, invoke

from sailq.shared.connection import connect

MB = 1 << 20
AS_SHIPPED = {"npu": 3950, "vpu": 2048, "vpp": 3072}
RECOMMENDED = {"npu": 7615, "vpu": 2048, "vpp": 2048}


@dataclass(frozen=True)
class Verdict:
    name: str
    state: str
    what: str
    fix: str | None


@dataclass(frozen=True)
class Examined:
    """What doctor found, and its exit code."""

    code: int
    found: Mapping[str, Verdict]

    def __getitem__(self, name: str) -> Verdict:
        return self.found[name]

    @property
    def wrong(self) -> set[str]:
        return {name for name, verdict in self.found.items() if verdict.state == "wrong"}


def doctor(*arguments: object, url: str = "") -> Examined:
    """Runs doctor in this process."""
    done = invoke("doctor", "--json", *arguments, url=url)
    assert done.stderr == ""
    return _read(done.returncode, done.stdout)


def fixed(
    fix: str | None, *arguments: object, folder: Path, url: str = "", tools: Iterable[Path] = ()
) -> Examined:
    """What the `sailq` script says in the same shell after `fix`, which is run in `folder`, with
    `tools` on its PATH."""
    assert fix
    path = os.pathsep.join(map(str, (*tools, Path(sys.executable).parent, os.environ["PATH"])))
    environment = {**os.environ, "PATH": path, **({"SAILQ_REDIS_URL": url} if url else {})}
    script = f'set -e\n{fix}\nset +e\nexec sailq doctor --json "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "fix", *map(str, arguments)], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=SECONDS,
    )
    return _read(done.returncode, done.stdout)


def _read(code: int, said: str) -> Examined:
    assert code in (0, 1), said
    verdicts = [Verdict(**one) for one in json.loads(said.splitlines()[-1])]
    for one in verdicts:
        assert one.state in {"ok", "warning", "wrong", "skipped"} and one.what and "\n" not in one.what, one
        assert one.fix is None or one.state in {"warning", "wrong"}
        if one.fix is not None:  # valid shell syntax, and short
            assert not re.search(r"\b(sed|awk|perl)\b", one.fix), one
            parsed = subprocess.run(["bash", "-n", "-c", one.fix], capture_output=True, text=True)
            assert parsed.returncode == 0, f"{one}: {parsed.stderr}"
    examined = Examined(code, {one.name: one for one in verdicts})
    assert examined.code == (1 if examined.wrong else 0)
    assert all(examined[name].fix for name in examined.wrong)
    return examined


def redis_cli(folder: Path, url: str) -> Path:
    """A folder with the server's own command, which this machine may not have: it sends its words to `url`."""
    folder.mkdir()
    tool = folder / "redis-cli"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nfrom {connect.__module__} import connect\n"
        "words = sys.argv[1:]\nwhile words[0].startswith('-'):\n"
        "    words = words[1 if words[0] in ('--tls', '--askpass') else 2:]\n"
        f"print(connect({url!r}).execute_command(*words))\n"
    )
    tool.chmod(0o755)
    return folder


def box(root: Path, heaps: Mapping[str, int], *, libsophon: str = "0.5.1") -> Path:
    """What an SE7 shows of itself below `root`: devices, driver's version, device tree (see test_deploy_pages.py), and
    the unit of a worker that starts with it."""
    dev, sophon = root / "dev", root / "opt/sophon"
    (sophon / f"libsophon-{libsophon}").mkdir(parents=True)
    (sophon / "libsophon-current").symlink_to(f"libsophon-{libsophon}")
    dev.mkdir()
    for name in ("bm-tpu0", "bmdev-ctl", "ion"):
        (dev / name).touch(0o666)
    nodes = {f"reserved-memory/ion_{heap}_mem": [(0x1_2410_0000, size)] for heap, size in heaps.items()}
    nodes["memory"] = [(0x1_0000_0000, 4096)] * 4
    for node, extents in nodes.items():
        folder = root / "proc/device-tree" / node
        folder.mkdir(parents=True)
        (folder / "reg").write_bytes(b"".join(struct.pack(">QQ", start, size * MB) for start, size in extents))
    (root / "proc/meminfo").write_text("MemTotal: 4300000 kB\nMemAvailable:    3700000 kB\n")
    (root / "run/systemd/system").mkdir(parents=True)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants.parent / "sailq-worker@.service").touch()
    (wants / "sailq-worker@0.service").touch()
    return root
