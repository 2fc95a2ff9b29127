"""A Debian that systemd-nspawn boots: its own systemd, users, journal and /dev, this machine's kernel and network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from debian import environment

BOOT_SECONDS = 180.0
WAIT_SECONDS = 240.0
CONTROLLERS = ("memory", "devices")
"""Of cgroups version 1, which nspawn gives to a machine read-only."""
_REBOOTS = 133
"""How nspawn ends where its machine reboots and another program is to start it again (--keep-unit)."""
T = TypeVar("T")


def until(look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Waits until `look` returns a true value, and returns it."""
    give_up = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < give_up, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return seen


class Machine:
    """Boots the files below `root`; `arguments` go to systemd-nspawn. It is halted with the `with` block."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.root, self._arguments = root, arguments
        self._groups = _own_groups()
        self._log = (root.parent / "console.log").open("w")
        self._start()

    def __enter__(self) -> Machine:
        try:
            self.wait_for_boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *command: str, check: bool = True, seconds: float = WAIT_SECONDS) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in the machine."""
        done = subprocess.run(
            ["nsenter", "--all", "--target", str(self._init()), *command], env=environment(), capture_output=True,
            text=True, timeout=seconds,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def reboot(self) -> None:
        """Returns when it is up again."""
        self.run("systemctl", "reboot", check=False)  # it may fail, because its own session is ended
        assert self._nspawn.wait(BOOT_SECONDS) == _REBOOTS
        self._start()
        self.wait_for_boot()

    def _start(self) -> None:
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--directory", str(self.root), "--boot", "--register=no", "--keep-unit",
             "--console=pipe", *self._arguments],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, preexec_fn=self._join,
        )

    def wait_for_boot(self) -> None:
        """Until all that is enabled has been started, or has failed to."""
        def up() -> bool:
            assert self._nspawn.poll() is None, f"systemd-nspawn ended: {Path(self._log.name).read_text()}"
            return self._init() != 0 and self.run("systemctl", "is-system-running", check=False).stdout.strip() in (
                "running", "degraded"
            )

        until(up, "a booted machine", BOOT_SECONDS)
        for controller in self._groups:
            self.run("mount", "-o", "remount,bind,rw", f"/sys/fs/cgroup/{controller}")
        self.run("systemctl", "daemon-reexec")  # systemd looks for controllers once

    def close(self) -> None:
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._log.close()
        for group in self._groups.values():
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)

    def _join(self) -> None:
        for group in self._groups.values():
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _init(self) -> int:
        """The process that is its init; 0 while there is none."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else 0


def _own_groups() -> dict[str, Path]:
    """A new control group of each of `CONTROLLERS`, below this process's; none where there is version 2 alone."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, path = line.split(":", 2)
        if controller in CONTROLLERS:
            groups[controller] = Path("/sys/fs/cgroup", controller, path.lstrip("/"), f"sailq-box-{os.getpid()}")
            groups[controller].mkdir()
    return groups


class Service:
    """A unit of a machine's systemd."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine, self.name = machine, name

    def __getitem__(self, property: str) -> str:
        """`systemctl show`'s value."""
        return self._machine.run("systemctl", "show", "--property", property, "--value", self.name).stdout.strip()

    def systemctl(self, verb: str, *options: str, check: bool = True) -> int:
        """Its exit code."""
        return self._machine.run("systemctl", *options, verb, self.name, check=check).returncode

    def wait_for(self, property: str, value: str, seconds: float = WAIT_SECONDS) -> None:
        until(lambda: self[property] == value, f"{property} of {self.name} is {value}", seconds)

    def wait_for_start_after(self, pid: str) -> None:
        """Waits until a process other than `pid` is ready."""
        until(lambda: self["MainPID"] not in (pid, "0") and self["ActiveState"] == "active", f"another than {pid}")

    def drop_in(self, **settings: str) -> None:
        """Settings of [Service] beside the unit's own, in place of those of an earlier call; without any, none."""
        folder = self._machine.root / "etc/systemd/system" / f"{self.name}.d"
        folder.mkdir(exist_ok=True)
        lines = [f"{name}=\n{name}={value}" if name == "ExecStart" else f"{name}={value}"
                 for name, value in settings.items()]
        (folder / "test.conf").write_text("\n".join(("[Service]", *lines, "")))
        self._machine.run("systemctl", "daemon-reload")

    def ends(self) -> list[tuple[str, str]]:
        """How its processes ended, oldest first: ("exited", its code) or ("killed", the signal's number), and
        ("result", what systemd calls it) where that is no success."""
        said = self._machine.run("journalctl", "--unit", self.name, "--output", "json", "--no-pager").stdout
        entries: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines()]
        found = []
        for entry in entries:
            if "EXIT_CODE" in entry and entry.get("COMMAND", "ExecStart") == "ExecStart":
                found.append((entry["EXIT_CODE"], entry["EXIT_STATUS"]))
            elif "UNIT_RESULT" in entry:
                found.append(("result", entry["UNIT_RESULT"]))
        return found
