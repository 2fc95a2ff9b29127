"""deploy/models/download.sh, with a module `dfss` that copies from a folder instead of from Sophgo."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.model_files.published import PUBLISHED

TREE = Path(__file__).parents[2]
SCRIPT = TREE / "deploy/models/download.sh"
BMODEL = (TREE / "tests/data/nets.bmodel").read_bytes()
SEVEN, TWO = PUBLISHED[:2]
FILE = SEVEN.bmodel.rsplit("/")[-1]

FAKE_DFSS = """
import os, pathlib, sys
(url,) = (argument[6:] for argument in sys.argv if argument.startswith("--url="))
login, path = url.split(":")
assert login == "open@sophgo.com", login
with open(os.environ["FAKE_SERVER"] + "/asked", "a") as asked:
    asked.write(path + "\\n")
published = pathlib.Path(os.environ["FAKE_SERVER"], path.rsplit("/")[-1])
print("dfss talks on stdout")
if not published.exists():
    sys.exit("No available server found")
pathlib.Path(published.name).write_bytes(published.read_bytes())
"""


class Server:
    """What the fake dfss serves, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def serve(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def asked(self) -> list[str]:
        """What was asked since the last time."""
        log = self.folder / "asked"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


def archive(entries: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return held.getvalue()


def configs() -> bytes:
    """The form of sophon-demo's configs.zip: folders, and files of the same names in two of them."""
    files = {path.name: path.read_bytes() for path in resolve("sailq-tiny").iterdir() if path.suffix == ".json"}
    return archive({
        "configs/": b"",
        "configs/config.json": files["config.json"],
        "configs/token_config/tokenizer.json": files["tokenizer.json"],
        "configs/token_config/tokenizer_config.json": files["tokenizer_config.json"],
        "configs/processor_config/tokenizer_config.json": b"{}",
        "configs/processor_config/preprocessor_config.json": files["preprocessor_config.json"],
        "configs/processor_config/readme.md": b"",
        "__MACOSX/configs/._config.json": b"\0",
    })


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path / "server")
    server.serve(FILE, BMODEL)
    server.serve("configs.zip", configs())
    server.serve(TWO.bmodel.rsplit("/")[-1], BMODEL)
    return server


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    package = tmp_path / "modules/dfss"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_DFSS)
    return package.parent


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """`df` as on a disk with 50 GB free."""
    return disk(tmp_path / "bin", 50 * 10**9)


def disk(folder: Path, free: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = f"Filesystem 1024-blocks Used Available Capacity Mounted on\\n/dev/x 1 1 {free // 1024} 1%% /"
    (folder / "df").write_text(f"#!/bin/sh\nprintf '{lines}\\n'\n")
    (folder / "df").chmod(0o755)
    return folder


@pytest.fixture
def environment(server: Server, modules: Path, commands: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(modules), "FAKE_SERVER": str(server.folder),
        "PATH": f"{commands}:{os.environ['PATH']}",
    }


def download(
    environment: Mapping[str, str], folder: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, *map(str, arguments), "--out", str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def why(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a failure."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_published_model_becomes_a_model_directory(
    environment: dict[str, str], server: Server, tmp_path: Path
) -> None:
    done = download(environment, tmp_path / "models", SEVEN.name)

    directory = tmp_path / "models" / SEVEN.name
    assert done.returncode == 0, done.stderr
    assert f"sailq worker --model {directory} --device tpu:0" in done.stdout and "dfss talks" not in done.stdout
    assert server.asked() == [SEVEN.configs, SEVEN.bmodel]
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json", "preprocessor_config.json", FILE, "tokenizer.json", "tokenizer_config.json",
    ]
    assert (directory / FILE).read_bytes() == BMODEL
    assert json.loads((directory / "tokenizer_config.json").read_text())
    assert ModelSpec.load(directory).layers == 3
    assert [path.name for path in (tmp_path / "models").iterdir()] == [SEVEN.name]


def test_existing_files_are_not_downloaded_again(environment: dict[str, str], server: Server, tmp_path: Path) -> None:
    download(environment, tmp_path, SEVEN.name)
    server.asked()

    done = download(environment, tmp_path, SEVEN.name)

    assert done.returncode == 0 and str(tmp_path / SEVEN.name) in done.stdout
    assert server.asked() == []


def test_a_second_run_fetches_what_the_first_did_not_finish(
    environment: dict[str, str], server: Server, tmp_path: Path
) -> None:
    (server.folder / FILE).unlink()
    assert SEVEN.bmodel in why(download(environment, tmp_path, SEVEN.name))
    assert not (tmp_path / SEVEN.name).exists()
    (tmp_path / f"{SEVEN.name}.part" / FILE).write_bytes(BMODEL[:5000])
    server.serve(FILE, BMODEL)
    server.asked()

    assert download(environment, tmp_path, SEVEN.name).returncode == 0

    assert server.asked() == [SEVEN.bmodel]
    assert (tmp_path / SEVEN.name / FILE).read_bytes() == BMODEL


@pytest.mark.parametrize("content", [BMODEL[:-1], BMODEL[:100], b"", b"<html>not found</html>"])
def test_an_incomplete_file_is_refused(
    environment: dict[str, str], server: Server, tmp_path: Path, content: bytes
) -> None:
    server.serve(FILE, content)

    done = download(environment, tmp_path, SEVEN.name)

    assert why(done).startswith("download.sh: ") and f"{FILE} is " in done.stderr
    assert not (tmp_path / SEVEN.name).exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [(configs()[:-40], "zip file"), (b"", "zip file"), (archive({"token_config/a.json": b""}), "config.json")],
)
def test_an_archive_that_cannot_be_used_is_refused(
    environment: dict[str, str], server: Server, tmp_path: Path, content: bytes, named: str
) -> None:
    server.serve("configs.zip", content)

    done = download(environment, tmp_path, SEVEN.name)

    assert why(done).startswith("download.sh: ") and named in done.stderr
    assert not (tmp_path / SEVEN.name).exists()


def test_an_archive_writes_nothing_outside(environment: dict[str, str], server: Server, tmp_path: Path) -> None:
    config = (resolve("sailq-tiny") / "config.json").read_bytes()
    server.serve("configs.zip", archive({"config.json": config, "../../outside.json": b"{}", "/abs.json": b"{}"}))

    assert download(environment, tmp_path / "models", SEVEN.name).returncode == 0
    assert not list(tmp_path.glob("outside.json")) and not Path("/abs.json").exists()


def test_a_model_without_configs_says_what_to_add(environment: dict[str, str], tmp_path: Path) -> None:
    done = download(environment, tmp_path, TWO.name)

    assert done.returncode == 0, done.stderr
    assert f"hf download {TWO.hub} chat_template.json config.json" in done.stdout
    assert [path.suffix for path in (tmp_path / TWO.name).iterdir()] == [".bmodel"]


def test_files_that_were_added_before_stay(environment: dict[str, str], tmp_path: Path) -> None:
    directory = tmp_path / SEVEN.name
    directory.mkdir()
    (directory / "config.json").write_text("mine")

    done = download(environment, tmp_path, SEVEN.name)

    assert done.returncode == 0, done.stderr
    assert (directory / "config.json").read_text() == "mine"
    assert (directory / FILE).is_file() and (directory / "tokenizer.json").is_file()
    assert not (tmp_path / f"{SEVEN.name}.part").exists()


def test_a_disk_that_is_too_small_is_found_before_the_download(
    environment: dict[str, str], server: Server, commands: Path, tmp_path: Path
) -> None:
    disk(commands, 3000 * 1024**2)

    said = why(download(environment, tmp_path, SEVEN.name))
    assert " 7 GB" in said and " 3145 MB " in said
    assert server.asked() == []


def test_a_disk_that_fills_up_is_named(
    environment: dict[str, str], server: Server, commands: Path, tmp_path: Path
) -> None:
    disk(commands, 2 * 1024**2)  # the size of this one is unknown
    (server.folder / TWO.bmodel.rsplit("/")[-1]).unlink()

    assert " 2 MB " in why(download(environment, tmp_path, TWO.name))


def test_without_dfss_the_fix_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    said = why(download({**environment, "PYTHONPATH": ""}, tmp_path, SEVEN.name))

    assert f"{sys.executable} -m pip install dfss" in said


def test_without_sailq_the_fix_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -I \"$@\"\n")
    python.chmod(0o755)

    assert "-m pip install" in why(download({**environment, "PYTHON": str(python)}, tmp_path, SEVEN.name))


def test_dfss_that_exits_with_0_and_writes_no_file(environment: dict[str, str], modules: Path, tmp_path: Path) -> None:
    (modules / "dfss/__main__.py").write_text("")

    assert "configs.zip" in why(download(environment, tmp_path, SEVEN.name))


def test_two_downloads_at_once_do_not_collide(environment: dict[str, str], tmp_path: Path) -> None:
    part = tmp_path / f"{SEVEN.name}.part"
    part.mkdir()
    held = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert SEVEN.name in why(download(environment, tmp_path, SEVEN.name))
    finally:
        os.close(held)


@pytest.mark.parametrize("arguments", [(), ("llama",), ("--fast", SEVEN.name), (SEVEN.name, TWO.name)])
def test_a_usage_error_is_refused(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert why(download(environment, tmp_path, *arguments)).startswith("download.sh: ")
    assert not list(tmp_path.glob("*.part"))


def test_the_list_names_all_and_what_must_be_added(environment: dict[str, str], tmp_path: Path) -> None:
    done = download(environment, tmp_path, "--list")

    assert done.returncode == 0 and done.stderr == ""
    said = {line.split(":")[0]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert list(said) == [model.name for model in PUBLISHED]
    assert all(model.hub in done.stdout for model in PUBLISHED if not model.configs)
    assert all(fact in said[SEVEN.name] for fact in ("int4", "1536", "7 GB"))
    assert all(fact in said[TWO.name] for fact in ("w4bf16", "2048"))


def test_the_names_and_facts_are_those_of_the_files() -> None:
    """A published file's name states its model, quantisation, context, chip, slots, and whether it is dynamic."""
    assert len({model.name for model in PUBLISHED}) == len({model.bmodel for model in PUBLISHED}) == len(PUBLISHED)
    for model in PUBLISHED:
        stated = re.fullmatch(
            r"(?P<family>qwen[\d.]+-vl-\d+b)(-instruct)?\S*?_(?P<quantisation>int4|w4bf16)_seq(?P<context>\d+)(_bm1684x)?"
            r"_1dev(_(?P<slots>\d)b)?(_(?P<dynamic>dyn|dynamic)|_static)?(_\d+)*.bmodel", model.bmodel.rsplit("/")[-1],
        )
        assert stated is not None, model.bmodel
        assert model.name.startswith(stated["family"]) and stated["family"] in model.hub.lower()
        facts = {stated["quantisation"], f"context {stated['context']}"}
        facts |= {f"{stated['slots']} slots"} if stated["slots"] else set()
        facts |= {"dynamic"} if stated["dynamic"] else set()
        assert {part.split(" of ")[0] for part in model.about.split(", ")} == facts
