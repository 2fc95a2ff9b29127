"""`sailq doctor` and the machine: model, bmodel, memory, port, a box's devices and heaps. Each fault is made in real
files; of a box, whose files this machine lacks, they lie below --root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bmodel_files import qwen2_vl, write_bmodel
from examined import AS_SHIPPED, MB, RECOMMENDED, Examined, box, doctor, fixed
from own_server import OwnServer

from sailq.worker.model_files.model_paths import resolve
from sailq.worker.model_files.published import PUBLISHED

TINY = {"layers": 3, "hidden": 256, "row": (1, 128), "vocabulary": 896}
FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja")


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with OwnServer(folder) as server:
        server.start()
        yield server.url


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model for the TPU, with sailq-tiny's files and a bmodel that fits them."""
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(resolve("sailq-tiny") / name, folder)
    write_bmodel(folder / "tiny.bmodel", qwen2_vl(**TINY))
    return folder


def only(examined: Examined, name: str, *facts: str) -> str:
    """The fix of the single check that failed. Its sentence must contain `facts`."""
    assert examined.wrong == {name}, examined
    assert all(fact in examined[name].what for fact in facts), examined[name]
    return str(examined[name].fix)


def for_emulator(directory: Path, url: str) -> Examined:
    return doctor("--model", directory, "--device", "emulator", "--metrics-port", 0, url=url)


# The model


@pytest.mark.parametrize(("model", "fix"), [
    ("/data/models/qwen2-vl-7b", "deploy/models/download.sh qwen2-vl-7b --out /data/models"),
    ("qwen2-vl-2b", "deploy/models/download.sh qwen2-vl-2b --out models"),
    ("/data/models/mine", "sailq model list /data/models"),
    ("sailq-tyni", "sailq model list"),
])
def test_a_missing_model(model: str, fix: str, url: str) -> None:
    examined = doctor("--model", model, "--metrics-port", 0, url=url)
    assert only(examined, "model", f"'{model}'") == fix
    assert examined["memory"].state == examined["bmodel"].state == "skipped"


@pytest.mark.parametrize(("missing", "words", "brings"), [
    ("tokenizer.json", "tokenizer.json", "tokenizer.json"),
    ("tokenizer_config.json", "tokenizer_config.json", "tokenizer_config.json"),
    ("chat_template.jinja", "chat template", "chat_template.json"),
])
def test_a_model_with_missing_files(
    directory: Path, url: str, missing: str, words: str, brings: str, tmp_path: Path
) -> None:
    (directory / missing).unlink()
    fix = only(for_emulator(directory, url), "model", words)
    assert fix == f"hf download Qwen/Qwen2-VL-2B-Instruct {brings} --local-dir {directory}"
    tool = tmp_path / "bin/hf"  # replaces the hub's program, which has no network here: it copies the files
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nfor last; do :; done\ncd {resolve("sailq-tiny")} && cp *.json *.jinja "$last"\n')
    tool.chmod(0o755)
    arguments = ("--model", directory, "--device", "emulator", "--metrics-port", 0)
    assert fixed(fix, *arguments, folder=tmp_path, url=url, tools=[tool.parent]).code == 0


def test_a_chat_template_may_be_in_a_file_of_its_own(directory: Path, url: str) -> None:
    """Where Qwen2.5-VL has the one for media."""
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert not for_emulator(directory, url).wrong


@pytest.mark.parametrize(("family", "hub"), [
    ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct"), ("qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct"),
])
def test_missing_files_are_those_of_the_models_family(directory: Path, url: str, family: str, hub: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    vision = config["vision_config"] | {"fullatt_block_indexes": []}  # of the newer family, whose default has 32 layers
    (directory / "config.json").write_text(json.dumps(config | {"model_type": family, "vision_config": vision}))
    (directory / "tokenizer.json").unlink()
    fix = for_emulator(directory, url)["model"].fix
    assert fix == f"hf download {hub} tokenizer.json --local-dir {directory}"


def test_a_model_without_the_nets_of_a_cpu(directory: Path, url: str) -> None:
    fix = only(doctor("--model", directory, "--metrics-port", 0, url=url), "model", "onnx/embedding.onnx")
    assert fix == (
        f"python -m deploy.models.export_onnx --dynamic --model_path {directory} --out {directory}/onnx"
    )


# The bmodel


def test_another_chips_bmodel(directory: Path, url: str, tmp_path: Path) -> None:
    write_bmodel(directory / "tiny.bmodel", qwen2_vl(**TINY), chip="BM1688")
    examined = doctor("--model", directory, "--device", "emulator", "--metrics-port", 0, url=url)
    fix = only(examined, "bmodel", "BM1688", "BM1684X")
    aside, compile_it = fix.splitlines()
    assert compile_it.startswith("deploy/models/compile.sh --model_path CHECKPOINT")
    write_bmodel(tmp_path / "right.bmodel", qwen2_vl(**TINY))  # as compile.sh would have made it
    subprocess.run(["bash", "-c", f"{aside}; mv {tmp_path}/right.bmodel {directory}"], check=True)
    assert for_emulator(directory, url)["bmodel"].what.startswith("right.bmodel: ")


def test_a_truncated_bmodel(directory: Path, url: str) -> None:
    file = directory / "tiny.bmodel"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert only(for_emulator(directory, url), "bmodel", f"{len(whole):,}").startswith("rsync ")


def test_a_truncated_published_bmodel_is_fetched_again(directory: Path, url: str) -> None:
    file = directory / Path(PUBLISHED[0].bmodel).name
    file.write_bytes((directory / "tiny.bmodel").read_bytes()[:-1])
    (directory / "tiny.bmodel").unlink()
    fix = only(for_emulator(directory, url), "bmodel", file.name)
    assert fix == f"rm -f {file} && deploy/models/download.sh qwen2-vl-7b --out {directory.parent}"


@pytest.mark.parametrize(("nets", "words"), [
    ([net for net in qwen2_vl(**TINY) if net.name != "block_2"], "block_2"),
    (qwen2_vl(**{**TINY, "hidden": 512}), "512"),
    (qwen2_vl(**{**TINY, "layers": 2}), "3 layers"),
])
def test_a_bmodel_that_does_not_match_the_model(directory: Path, url: str, nets: list, words: str) -> None:  # type: ignore[type-arg]
    file = write_bmodel(directory / "tiny.bmodel", nets)
    fix = only(for_emulator(directory, url), "bmodel", words)
    assert fix.splitlines()[0] == f"sailq model inspect {file} --nets"


def test_no_bmodel_and_two(directory: Path, url: str) -> None:
    file = directory / "tiny.bmodel"
    shutil.copy(file, directory / "a.bmodel")
    fix = only(for_emulator(directory, url), "bmodel", "a.bmodel", "tiny.bmodel")
    assert fix.endswith(f"--bmodel {directory}/a.bmodel")
    for name in ("a", "tiny"):
        (directory / f"{name}.bmodel").unlink()
    assert "compile.sh" in only(for_emulator(directory, url), "bmodel", str(directory))


# Memory, disk, port


def test_too_little_memory(url: str, tmp_path: Path) -> None:
    """The model's files state a size of 500 GB."""
    large = tmp_path / "large"
    shutil.copytree(resolve("sailq-tiny"), large)
    os.truncate(large / "onnx/weights.bin", 500 * 10**9)
    examined = doctor("--model", large, "--metrics-port", 0, url=url)
    fix = only(examined, "memory", "750.3 GB")
    assert fixed(fix, "--metrics-port", 0, folder=tmp_path, url=url).code == 0


@pytest.mark.parametrize(("limit", "state"), [("300000000", "wrong"), ("max", "ok"), ("8000000000", "ok")])
def test_a_containers_memory_is_what_its_limit_leaves(limit: str, state: str, url: str, tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("100000000\n")
    (tmp_path / "proc").mkdir()
    shutil.copy("/proc/meminfo", tmp_path / "proc")
    examined = doctor("--root", tmp_path, "--metrics-port", 0, url=url)
    assert examined["memory"].state == state, examined["memory"]
    assert examined.wrong == ({"memory"} if state == "wrong" else set())


def test_a_port_in_use(url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fix = only(doctor("--metrics-port", port, url=url), "metrics port", str(port))
        start = fix.split()
        assert start[:3] == ["sailq", "worker", "--metrics-port"]
        assert doctor(*start[2:], url=url).code == 0
    assert doctor("--metrics-port", port, url=url).code == 0


def test_a_port_of_a_running_worker(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\nsailq:num_requests_running 0.0\n")

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        examined = doctor("--metrics-port", port, url=url)
        found = examined["metrics port"]
        assert found.state == "ok" and str(port) in found.what and "worker" in found.what


# A box


@pytest.fixture
def sail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SAIL is installed; this one can nothing but be imported. No machine but a box has the real one."""
    package = tmp_path / "site/sophon"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sail.py").write_text("class EngineLLM: ...\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "sail.py"


def on_box(directory: Path, root: Path, url: str) -> Examined:
    return doctor("--model", directory, "--root", root, "--metrics-port", 0, url=url)


@pytest.fixture
def seven_b(directory: Path) -> Path:
    """A model directory whose bmodel takes 9000 MB of a device."""
    write_bmodel(directory / "tiny.bmodel", qwen2_vl(**TINY), neurons=9000 * MB)
    return directory


def test_a_healthy_box(seven_b: Path, sail: Path, url: str, tmp_path: Path) -> None:
    examined = on_box(seven_b, box(tmp_path / "box", RECOMMENDED), url)
    assert examined.code == 0, examined
    others = {name: verdict.state for name, verdict in examined.found.items() if verdict.state != "ok"}
    assert others.keys() - {"metrics port"} == {"gateway"} and others["gateway"] == "skipped"
    assert examined["supervision"].what == "sailq-worker@0.service"
    assert examined["device files"].what == "/dev/bm-tpu0, /dev/bmdev-ctl, /dev/ion"


def test_heaps_as_shipped(seven_b: Path, sail: Path, url: str, tmp_path: Path) -> None:
    root = box(tmp_path / "box", AS_SHIPPED)
    examined = doctor("--model", seven_b, "--root", root, "--metrics-port", 0, url=url)
    fix = only(examined, "heaps", "9070 MB", "442 MB", "npu 7615, vpu 2048, vpp 2048")
    assert "./memory_edit.sh -c -npu 7615 -vpu 2048 -vpp 2048" in fix.splitlines()
    shutil.rmtree(root)
    assert on_box(seven_b, box(root, RECOMMENDED), url).code == 0  # the result of memory_edit and a restart


def test_a_model_that_is_too_large_for_any_heaps(seven_b: Path, sail: Path, url: str, tmp_path: Path) -> None:
    write_bmodel(seven_b / "tiny.bmodel", qwen2_vl(**TINY), neurons=20_000 * MB)
    examined = on_box(seven_b, box(tmp_path / "box", RECOMMENDED), url)
    assert only(examined, "heaps").startswith("sailq model list")


def test_an_old_libsophon(directory: Path, sail: Path, url: str, tmp_path: Path) -> None:
    root = box(tmp_path / "box", RECOMMENDED, libsophon="0.4.9")
    fix = only(on_box(directory, root, url), "libsophon", "0.4.9", "0.5.1")
    assert "dfss" in fix


def test_a_device_missing_from_the_container(directory: Path, sail: Path, url: str, tmp_path: Path) -> None:
    root = box(tmp_path / "box", RECOMMENDED)
    (root / "dev/ion").unlink()
    assert "modprobe" in only(on_box(directory, root, url), "device files", "/dev/ion")
    (root / ".dockerenv").touch()
    fix = only(on_box(directory, root, url), "device files", "/dev/ion")
    assert fix == "docker run --device /dev/ion …"


@pytest.mark.parametrize(("module", "fix"), [
    ("raise ImportError('libbmrt.so.1.0: cannot open shared object file: No such file or directory')",
     "export LD_LIBRARY_PATH=/opt/sophon/libsophon-current/lib"),
    ("", "pip uninstall --yes sophon"),  # built without EngineLLM
    ("import os; os.abort()", "pip uninstall --yes sophon"),
])
def test_a_broken_sail(directory: Path, sail: Path, module: str, fix: str, url: str, tmp_path: Path) -> None:
    sail.write_text(module)
    root = box(tmp_path / "box", RECOMMENDED)
    assert only(on_box(directory, root, url), "SAIL").startswith(fix)


def test_a_worker_without_a_service(directory: Path, sail: Path, url: str, tmp_path: Path) -> None:
    root = box(tmp_path / "box", RECOMMENDED)
    shutil.rmtree(root / "etc/systemd/system/multi-user.target.wants")
    examined = on_box(directory, root, url)
    assert examined.code == 0
    assert examined["supervision"].fix == "sudo systemctl enable --now sailq-worker@0.service"
    shutil.rmtree(root / "etc")
    assert str(on_box(directory, root, url)["supervision"].fix).startswith("sudo deploy/se7/setup.sh ")


def test_a_missing_tpu(directory: Path, url: str, tmp_path: Path) -> None:
    root = tmp_path / "laptop"
    examined = doctor("--model", directory, "--device", "tpu:1", "--root", root, "--metrics-port", 0, url=url)
    assert {"device files", "libsophon", "SAIL"} <= examined.wrong
    assert "/dev/bm-sophon1" in examined["device files"].what
    assert examined["SAIL"].fix == "pip install dfss\npython -m dfss --install sail"
