"""Debian's files in a folder or an archive, for tests that boot a machine, build images or run another architecture.

Archives are kept in `.debian/` of the tree, which git ignores: to make one takes minutes, to unpack it seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TREE = Path(__file__).parents[1]
KEPT = TREE / ".debian"
AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")
_PYTHON = ("python3", "python3-venv", "python3-pip", "ca-certificates")
_PACKAGES = {"amd64": (*_PYTHON, "systemd", "systemd-sysv", "dbus", "curl"), "arm64": _PYTHON}


def require(**packages: str) -> None:
    """Fails the test, with what to install, where a command is missing; `packages` names each command's Debian package,
    `_` for `-` in the commands' names. Fails it for whoever is not root, too."""
    missing = sorted({package for command, package in packages.items() if not shutil.which(command.replace("_", "-"))})
    assert not missing, f"This needs Debian's {', '.join(missing)}: apt-get install {' '.join(missing)}"
    assert os.geteuid() == 0, "This makes files of other users and mounts: run it as root."


def archive(architecture: str = "amd64") -> Path:
    """A tar of Debian 12 with Python, and on amd64 with what a machine boots by; made on first use."""
    path = KEPT / f"bookworm-{architecture}.tar"
    if not path.exists():
        KEPT.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.tar")
        include = ",".join(_PACKAGES[architecture])
        subprocess.run(
            ["mmdebstrap", "--quiet", f"--architectures={architecture}", "--variant=minbase", f"--include={include}",
             "bookworm", part], check=True,
        )
        part.rename(path)
    return path


def unpack(path: Path, root: Path) -> None:
    """An archive's files below `root`, with this machine's certificate authorities, which it reaches PyPI by."""
    root.mkdir(parents=True)
    subprocess.run(["tar", "--extract", "--file", path, "--directory", root], check=True)
    shutil.copy(Path("/") / AUTHORITIES, root / AUTHORITIES)


def environment() -> dict[str, str]:
    """What a command needs of this process's environment to reach PyPI, and a path."""
    kept = {
        name: value for name, value in os.environ.items()
        if name.startswith(("PIP_", "UV_", "SSL_CERT_")) or name.lower().endswith("_proxy")
    }
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
            "LANG": "C.UTF-8"}
