"""deploy/se7/rollout.sh over boxes that are folders, with real workers on one real server.

The fake ssh below runs a box's commands here. It stands in for the network and for systemd: below --root setup.sh
starts nothing, so that the fake starts the worker that the unit would, on a CPU, and waits until it takes jobs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from boxes import BM_VERSION, Box

from sailq.shared.workers import live_workers
from sailq.worker.model_files.model_paths import resolve

ROLLOUT = Path(__file__).parents[2] / "deploy/se7/rollout.sh"

FAKE_SSH = """#!/bin/bash
# Stands in for ssh: runs the command here, with /data, /etc and setup.sh those of the box, FAKE_BOXES/NAME.
while [[ $1 == -* ]]; do [ "$1" != -o ] || shift; shift; done
export BOX=$FAKE_BOXES/$1/box PATH=$FAKE_BOXES/$1/bin:$FAKE_BOXES/bin:$PATH
command=${2//\\/data\\//$BOX/data/} command=${command//\\/etc\\/sailq/$BOX/etc/sailq}
command=${command//--model $BOX\\/data/--model \\/data}
command=${command/setup.sh/setup.sh --root $BOX}
bash -c "$command" || exit
[[ $command != *setup.sh* ]] || fake_restart
"""
SUDO = '#!/bin/sh\n# Stands in for sudo.\n[ "$1" != -n ] || shift\nexec "$@"\n'
SYSTEMCTL = """#!/bin/sh
# Answers the one question that rollout.sh asks; the real systemctl does the rest.
[ "$1" = show ] || exec /bin/systemctl "$@"
cat "$BOX/pid"
echo
echo 0
"""
RESTART = """#!/bin/bash
# Replaces systemd: restarts the box's worker. A broken box starts another program instead.
[ ! -e "$BOX/pid" ] || { kill -TERM "$(cat "$BOX/pid")"; tail --pid="$(cat "$BOX/pid")" -f /dev/null; }
set -a; . <(sed "s/=\\(.*\\)/='\\1'/" "$BOX/etc/sailq/worker.env")
SAILQ_MODEL=$BOX$SAILQ_MODEL
run=("$BOX/data/sailq-env/bin/sailq" worker --threads 1)
[ ! -e "$BOX/broken" ] || run=(sleep 60)
"${run[@]}" </dev/null >"$BOX/log" 2>&1 &
echo $! >"$BOX/pid"
until [ -e "$BOX/broken" ] || grep -q "takes jobs" "$BOX/log"; do sleep 0.1; done
"""


class Site:
    """Some boxes, and their operator's machine."""

    def __init__(self, folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._server, self.boxes = folder, server, dict[str, Box]()
        self._command("fake_restart", RESTART)
        self._command("sudo", SUDO)
        self._command("systemctl", SYSTEMCTL)
        self.operator = folder / "operator"
        self.operator.mkdir()
        shutil.move(self._command("ssh", FAKE_SSH), self.operator / "ssh")
        monkeypatch.setenv("FAKE_BOXES", str(folder))
        monkeypatch.setenv("PATH", f"{self.operator}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SAILQ_REDIS_URL", server)
        for name, value in Box.pip.items():
            monkeypatch.setenv(name, value)

    def _command(self, name: str, text: str) -> Path:
        command = self.folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
        return command

    def box(self, name: str) -> Box:
        """With sailq-tiny, once more than it needs, as models seen and seen-v2."""
        self.boxes[name] = box = Box(self.folder / name, self._server)
        for model in ("seen", "seen-v2"):
            directory = box.root / box.model(model)[1:]
            for file in resolve("sailq-tiny").iterdir():
                if not (directory / file.name).exists():
                    (directory / file.name).symlink_to(file)
        return box

    def rollout(self, *arguments: str, boxes: str = "") -> subprocess.CompletedProcess[str]:
        listed = self.folder / "boxes.txt"
        listed.write_text(boxes or "".join(f"{name}  # a comment\n\n" for name in self.boxes))
        return subprocess.run([ROLLOUT, listed, *arguments], capture_output=True, text=True, timeout=200)

    def stop(self) -> None:
        for box in self.boxes.values():
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((box.root / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, redis_url, monkeypatch)
    yield site
    site.stop()


@pytest.mark.proof
def test_boxes_are_set_up_and_changed_one_by_one_until_one_fails(site: Site, connection: redis.Redis) -> None:
    first = site.box("first")
    done = site.rollout("--env", str(first.env), "--model", "/data/models/seen", "--sail", str(first.wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1 of 1] first" in done.stdout and "first serves seen with sailq" in done.stdout
    (before,) = live_workers(connection)
    assert before.model == "seen"
    assert not list(first.root.rglob("brought")), "the password is in /etc/sailq alone"
    (served,) = (first.root / "data/sailq-env").rglob("site-packages/sailq/worker/process/serve.py")
    assert served.stat().st_mode & 0o004, "the user sailq reads it"

    old, third = site.box("old"), site.box("third")
    old.command("bm_version", BM_VERSION.format(libsophon="0.4.9"))
    done = site.rollout("--env", str(first.env), "--model", "/data/models/seen-v2")
    assert done.returncode == 1, done.stdout
    assert "first serves seen-v2" in done.stdout and "libsophon is 0.4.9" in done.stdout
    assert "stopped at old" in done.stderr
    assert (site.folder / "boxes.txt.left").read_text() == "old\nthird\n"
    (after,) = live_workers(connection)
    assert (after.model, after.pid != before.pid) == ("seen-v2", True)
    assert not list(old.root.rglob("brought")) and not (third.root / "data/sailq-tree").exists()

    (first.root / "broken").touch()
    done = site.rollout("--model", "/data/models/seen", "--wait", "1", boxes="first\nthird\n")
    assert done.returncode == 1 and "does not show seen with sailq" in done.stderr, done.stderr
    assert (site.folder / "boxes.txt.left").read_text() == "first\nthird\n"


def test_a_usage_error_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, said in (
        (["--env", "/no/such"], "/no/such"), (["--fast"], "--fast"),
        (["--wait", "long"], "--wait"), (["more.txt"], "list"),
    ):
        done = site.rollout(*arguments, boxes="a\n")
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = site.rollout(boxes="# none\n")
    assert done.returncode == 2 and "boxes.txt" in done.stderr
    monkeypatch.setenv("SAILQ_REDIS_URL", "redis://127.0.0.1:1/0")
    done = site.rollout(boxes="a\n")
    assert done.returncode == 2 and "SAILQ_REDIS_URL" in done.stderr
