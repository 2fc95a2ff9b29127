"""The scripts of deploy/ against the files of real boxes, and its pages against the commands that exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from boxes import AS_SHIPPED, MB, RECOMMENDED, device_tree, ion
from commands import invoke

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HEAPS = DEPLOY / "se7" / "heaps.py"
FOLDERS = ("producer", "worker", "tests", "deploy")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=name)
def test_shell_scripts_pass_shellcheck(script: Path) -> None:
    command = [Path(sys.executable).with_name("shellcheck"), "--severity=warning", "--external-sources", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_heaps_runs_on_the_python_of_a_box() -> None:
    """Of version 3.8, with neither sailq nor any other package (-S)."""
    for file in (HEAPS, ROOT / "worker/doctor/ion_heaps.py"):
        ast.parse(file.read_text(), feature_version=(3, 8))
    done = subprocess.run([sys.executable, "-I", "-S", str(HEAPS), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--need" in done.stdout, done.stderr


def test_heaps_without_its_checkout_says_what_is_missing(tmp_path: Path) -> None:
    alone = tmp_path / "deploy/se7/heaps.py"
    alone.parent.mkdir(parents=True)
    alone.write_text(HEAPS.read_text())
    done = subprocess.run([sys.executable, str(alone), "--need", "1"], capture_output=True, text=True)
    assert why(done).endswith("this runs in a whole checkout of sailq.")


def heaps(*arguments: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    command = [sys.executable, str(HEAPS), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def why(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_heaps_as_shipped_are_too_small_for_a_7b(tmp_path: Path) -> None:
    done = heaps("--need", 9000, "--root", ion(tmp_path, {**AS_SHIPPED}))
    assert done.returncode == 1, done.stderr
    assert all(f"{size} MB" in done.stdout for size in (*AS_SHIPPED.values(), 9070, 442))
    assert "./memory_edit.sh -c -npu 7615 -vpu 2048 -vpp 2048\n" in done.stdout
    assert "sudo cp emmcboot.itb /boot/emmcboot.itb && sync\n" in done.stdout


def test_the_page_shows_what_heaps_prints(tmp_path: Path) -> None:
    printed = heaps("--need", 9000, "--root", device_tree(tmp_path, AS_SHIPPED)).stdout
    page = (DEPLOY / "se7/README.md").read_text()
    assert printed[: printed.index("\n\nSet ")].replace(str(tmp_path), "") in page


@pytest.mark.parametrize("box", [ion, device_tree])
def test_recommended_heaps_hold_a_7b(box: object, tmp_path: Path) -> None:
    assert callable(box)
    done = heaps("--need", 9000, "--root", box(tmp_path, {**RECOMMENDED}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11711 MB" in done.stdout and "memory_edit" not in done.stdout


def test_a_layout_without_a_vpu_heap_counts_the_others(tmp_path: Path) -> None:
    assert "all   11711 MB" in heaps("--need", 1, "--root", device_tree(tmp_path, {"npu": 7615, "vpp": 4096})).stdout


def test_a_larger_model_gets_a_larger_split(tmp_path: Path) -> None:
    done = heaps("--need", 12000, "--root", ion(tmp_path, {**RECOMMENDED}))
    assert done.returncode == 1 and "-npu 7615 -vpu 2048 -vpp 4096\n" in done.stdout


@pytest.mark.parametrize(("need", "banks"), [(20_000, (8192, 4096, 4096)), (9000, (4096, 2048, 2048))])
def test_no_split_is_invented_for_an_unknown_memory_size(need: int, banks: tuple[int, ...], tmp_path: Path) -> None:
    done = heaps("--need", need, "--root", device_tree(tmp_path, AS_SHIPPED, banks))
    assert done.returncode == 1 and "smaller model" in done.stdout and " -c " not in done.stdout


def test_unreadable_files_are_reported_in_one_sentence(tmp_path: Path) -> None:
    assert "heaps" in why(heaps("--need", 9000, "--root", tmp_path)).partition("heaps.py: ")[2]
    garbage = ion(tmp_path / "ion", {"npu": "Summary: garbage", "vpu": 2048})
    assert "'Summary: garbage'" in why(heaps("--need", 9000, "--root", garbage))
    cut = device_tree(tmp_path / "tree", AS_SHIPPED)
    (cut / "proc/device-tree/reserved-memory/ion_npu_mem/reg").write_bytes(b"\0" * 7)
    assert "7 bytes" in why(heaps("--need", 9000, "--root", cut))


@pytest.mark.parametrize("arguments", [(), ("--need",), ("--need", "many"), ("--need", "0"), ("a", "--need", "1")])
def test_a_usage_error_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert heaps(*arguments, "--root", ion(tmp_path, {**RECOMMENDED})).returncode == 2


def stand_in(folder: Path, *lines: str) -> str:
    """A PATH whose only command is a `sailq` of these lines."""
    folder.mkdir()
    (folder / "sailq").write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    (folder / "sailq").chmod(0o755)
    return str(folder)


def test_a_bmodel_is_measured_by_sailq(tmp_path: Path) -> None:
    box = ion(tmp_path / "box", {**AS_SHIPPED})
    told = json.dumps({"device_bytes": 9000 * MB - 1})
    path = stand_in(tmp_path / "bin", f"""[ "$*" = "model inspect --json a.bmodel" ] && echo '{told}'""")
    done = heaps("a.bmodel", "--root", box, path=path)
    assert done.returncode == 1 and " 9000 MB" in done.stdout, done.stderr
    refusing = stand_in(tmp_path / "refusing", "echo 'a.bmodel is not a bmodel.' >&2", "exit 2")
    assert why(heaps("a.bmodel", "--root", box, path=refusing)).endswith("a.bmodel is not a bmodel.")
    assert "--need" in why(heaps("a.bmodel", "--root", box, path=str(tmp_path)))


def commands(page: Path) -> Iterator[list[str]]:
    """The words after each `sailq`, or after our images, in the page's shell blocks."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word in {"sailq", "sailq-worker-tpu"}:
                    yield list(words[place + 1 :])


@cache
def help_of(*command: str) -> str:
    """The command's help, asked for once."""
    done = invoke(*command, "--help")
    assert done.returncode == 0, f"sailq {' '.join(command)} is not there: {done.stderr}"
    return done.stdout


LINES = [(name(page), words) for page in PAGES for words in commands(page) if words and words[0].isalpha()]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}-{words[0]}" for page, words in LINES])
def test_commands_in_pages_exist_with_their_options(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # in a narrow terminal, the help breaks options into two lines
    command = words[:2] if words[0] == "model" else words[:1]
    text = help_of(*command)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}(?![\w-])", text), f"{page}: sailq {' '.join(command)} has no {option}"
    if any(word.startswith("tpu:") for word in words):
        assert "tpu" in text, f"{page}: sailq {command[0]} knows no TPU"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
