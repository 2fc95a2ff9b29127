"""Every shell command on the project's pages is run here, as it stands there, or says what it needs.

A block that needs what a laptop has not, a box above all, says so in its first line, `# needs a box`, or in the
sentence before it. Each of the others is run, in a folder like the project's with the files that the pages speak of.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from gateways import Gateway, gateway
from scraping import free_port

from sailq.worker.model_files.model_paths import resolve

ROOT = Path(__file__).parents[2]
FOLDERS = ("producer", "worker", "operators", "shared", "deploy", "tests")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
SHELL, PYTHON = ("sh", "bash", "shell", "console"), "python"
NEEDS = re.compile(
    r"\bneeds? (?:such a |that |a |an |the )?(?:box|boxes|card|Docker|server|Sophgo's server|machine|compiler|hour)\b"
)
"""What may be said to be needed: nothing that a machine with this project and a network of its own has."""

PREAMBLE = r"""
set -euo pipefail
logs=$(mktemp -d)
started=()
leave() { for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null || true; done; wait; rm -r "$logs"; }
trap leave EXIT
# start WORDS COMMAND...: what a person would leave running, until it has said WORDS.
start() {
    local log=$logs/${#started[@]}
    touch "$log"
    command "${@:2}" >"$log" 2>&1 &
    started+=($!)
    until grep -q "$1" "$log"; do
        kill -0 $! 2>/dev/null || { cat "$log" >&2; exit 1; }
        sleep 0.1
    done
}
sailq() {
    case "$*" in
        server*) start redis:// sailq "$@" --port "$PORT" ;;
        worker*) start "takes jobs" sailq "$@" ;;
        exporter*) start "are on port" sailq "$@" ;;
        gateway*--new-key*) command sailq "$@" ;;
        gateway*) start "startup complete" sailq "$@" --port "$GATEWAY_PORT" ;;
        *--watch*) timeout --signal INT 4 sailq "$@" || [ $? = 124 ] ;;
        chat*) command sailq "$@" <<<q ;;
        *) command sailq "$@" ;;
    esac
}
curl() { command curl --silent --show-error --fail-with-body "$@"; }
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, at a line of a page."""

    page: Path
    line: int
    language: str
    text: str
    said: str
    """The line before it, and its own first."""

    @property
    def marked(self) -> bool:
        return NEEDS.search(self.said) is not None

    @property
    def commands(self) -> str:
        """Without what is said about them."""
        return re.sub(r"(^|\s+)#.*", "", self.text)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        text = lines[start + 1 : number]
        before = next((line for line in reversed(lines[:start]) if line), "")
        said = "\n".join([before, *[line for line in text[:1] if line.startswith("#")]])
        yield Block(page, start + 1, lines[start][3:].strip(), "\n".join(text), said)
        start = None


ALL = [block for page in PAGES for block in blocks(page)]
SHELLS = [block for block in ALL if block.language in SHELL]
RUN = list({block.commands: block for block in reversed(ALL)
            if block.language in (*SHELL, PYTHON) and not block.marked}.values())[::-1]
"""What two pages have, as the README's in two languages have it, is run once."""


@pytest.fixture
def project(tmp_path: Path, served_url: str) -> Path:
    """The project's folders, and what the pages' commands are about."""
    for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.md"), *(ROOT / name for name in ("LICENSE", "Makefile"))):
        (tmp_path / path.name).symlink_to(path)
    for folder in (*FOLDERS, "sailq"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    subprocess.run([sys.executable, "-m", "sailq.producer.samples", "--count", "4", "--out", "made"], cwd=tmp_path,
                   check=True, capture_output=True)
    (tmp_path / "cams").mkdir()
    for number, clip in enumerate(sorted((tmp_path / "made/clips").glob("*.mp4"))):
        shutil.copy(clip, tmp_path / f"cams/{number}.mp4")
    shutil.copy(tmp_path / "cams/0.mp4", tmp_path / "clip.mp4")
    shutil.copy(next((tmp_path / "made/images").iterdir()), tmp_path / "cat.jpg")
    (tmp_path / "producer.env").write_text(f"SAILQ_REDIS_URL={served_url}\n")
    return tmp_path


@pytest.fixture(scope="module")
def running_gateway(common_worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway that the pages' Python asks."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(common_worker, folder / "gateway.log", "--files", folder / "files") as running:
        yield running


@pytest.mark.parametrize("block", RUN, ids=str)
@pytest.mark.proof
def test_a_command_that_needs_nothing_special_runs_as_the_page_says(
    block: Block, project: Path, served_url: str, running_gateway: Gateway
) -> None:
    port, gateway_port = free_port(), free_port()
    # pip and make only print what they would do: this test itself runs under `make test`.
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": str(port),
        "GATEWAY_PORT": str(gateway_port),
        "PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "MAKEFLAGS": "n",
        "SECRETS": str(project / "secrets"), "SAILQ_REDIS_URL": served_url,
    }
    text = block.text.replace("REPOSITORY", str(ROOT))
    text = text.replace("--model_path DIR", f"--model_path {resolve('sailq-tiny')}")
    if block.language == PYTHON:
        command, text = [sys.executable, "-c"], text.replace("redis://127.0.0.1:6379/0", served_url)
        text = text.replace("http://127.0.0.1:8000", running_gateway.url)
    else:
        text = re.sub(r"(127\.0\.0\.1|localhost):8000", rf"\1:{gateway_port}", text)
        command, text = ["bash", "-c"], PREAMBLE + text.replace("127.0.0.1:6379", f"127.0.0.1:{port}")
    running = subprocess.Popen(
        [*command, text], cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )
    try:
        said, _ = running.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, (
        f"{block} does not run. If it needs a box, or anything else that a laptop has not, its first line says so: "
        f"`# needs a box`.\n{said}"
    )


def test_there_are_blocks_of_both_kinds() -> None:
    assert len(RUN) >= 5 and len([block for block in SHELLS if block.marked]) >= 10


@pytest.mark.parametrize("block", SHELLS, ids=str)
def test_scripts_in_pages_are_there_with_their_options(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        line = re.sub(r"-m (deploy[.\w]+)", lambda module: module[1].replace(".", "/") + ".py", line)
        for script, rest in re.findall(r"(?:^|[\s/])(deploy/[\w/.-]+\.(?:sh|py))([^#|;&]*)", line):
            text = (ROOT / script).read_text()
            for option in re.findall(r"(?<=\s)--[\w-]+", rest):
                assert re.search(rf"{option}(?![\w-])", text), f"{block}: {script} has no {option}"
