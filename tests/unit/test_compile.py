"""compile.sh around its tools: options, resumption, failures.

The tools themselves are fakes here, which leave the files that the real ones would; tests/emulator runs the real ones.
The nets are the real exporter's, which makes them once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import run

from sailq.worker.model_files.model_paths import resolve

MODELS = Path(__file__).parents[2] / "deploy/models"
MADE = next(line.split("=$env/")[1].split()[0] for line in (MODELS / "tpu_env.sh").read_text().splitlines()
            if line.startswith("made="))
FAKE_TRANSFORM = """#!/bin/bash
while [ $# -gt 0 ]; do [ "$1" = --mlir ] && out=$2; [ "$1" = --model_def ] && def=$2; shift; done
echo "transform $(basename $def)" >>"$FAKE_LOG"
[ "$(basename $def .onnx)" = "$FAKE_HANG" ] && sleep 60
[ "$(basename $def .onnx)" = "$FAKE_SILENT" ] && echo "Unsupport opset" && exit 0
[ "$(basename $def .onnx)" = "$FAKE_FAIL" ] && echo "no such operation" && exit 3
echo mlir >"$out"
"""
FAKE_DEPLOY = """#!/bin/bash
echo "deploy $*" >>"$FAKE_LOG"
while [ $# -gt 0 ]; do [ "$1" = --model ] && out=$2; shift; done
echo net >"$out"
"""
FAKE_TOOL = """#!/bin/bash
echo "combine $#" >>"$FAKE_LOG"
echo all >"${@: -1}"
"""

FAKE_PYTHON = """#!/bin/bash
# python -m deploy.models.export_onnx --model_path DIR --out DIR OPTIONS: copies what was exported with OPTIONS.
[ -f deploy/models/export_onnx.py ] || exit 5
cp -r "$EXPORTS/${*:7}/." "$6"
"""
OPTIONS = ["--batch", "2", "--seq_length", "16", "--vision_seq_length", "16", "--prefill_lengths", "8"]
"""Of each compilation here, so that all take the same nets; in the order in which compile.sh hands them on."""
NETS = 3 * 3 + 2 + 1 + 2 + 1 + 1

Compile = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve("sailq-tiny"), tmp_path / "Tiny", ignore=shutil.ignore_patterns("onnx")))


@pytest.fixture
def command(model: Path, tmp_path: Path) -> list[str]:
    return [str(MODELS / "compile.sh"), "--model_path", str(model), *OPTIONS, "--out", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the exporter makes of sailq-tiny, by its options."""
    folder = tmp_path_factory.mktemp("exports")
    assert run(resolve("sailq-tiny"), folder / " ".join(OPTIONS), *OPTIONS) == 0
    return folder


@pytest.fixture
def environment(tmp_path: Path, exports: Path) -> dict[str, str]:
    fakes = tmp_path / "fake-tpu-env"
    (fakes / "bin").mkdir(parents=True)
    (fakes / MADE).touch()
    for name, text in (("model_transform.py", FAKE_TRANSFORM), ("model_deploy.py", FAKE_DEPLOY),
                       ("model_tool", FAKE_TOOL), ("python", FAKE_PYTHON)):
        (fakes / "bin" / name).write_text(text)
        (fakes / "bin" / name).chmod(0o755)
    return {**os.environ, "TPU_ENV": str(fakes), "PYTHON": str(fakes / "bin/python"), "EXPORTS": str(exports),
            "FAKE_LOG": str(tmp_path / "log")}


@pytest.fixture
def compile_(command: list[str], environment: dict[str, str]) -> Compile:
    def compile_(*options: str, **fake: str) -> subprocess.CompletedProcess[str]:
        Path(environment["FAKE_LOG"]).write_text("")
        return subprocess.run([*command, *options], env={**environment, **fake}, capture_output=True, text=True)

    return compile_


def calls(environment: dict[str, str]) -> list[str]:
    return Path(environment["FAKE_LOG"]).read_text().splitlines()


def transformed(environment: dict[str, str]) -> list[str]:
    return [line.split()[1] for line in calls(environment) if line.startswith("transform")]


def test_every_net_is_compiled_once_and_a_second_run_has_nothing_to_do(
    compile_: Compile, environment: dict[str, str], tmp_path: Path
) -> None:
    done = compile_("--quantize", "w4f16")
    bmodel = tmp_path / "out/tiny_int4_seq16_p8_b2_1dev.bmodel"
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(bmodel) and bmodel.read_text() == "all\n"
    nets = transformed(environment)
    assert len(nets) == len(set(nets)) == NETS
    deployed = {line.split("--mlir ")[1].split()[0]: line for line in calls(environment) if "deploy" in line}
    assert "W4F16" in deployed["block_0@8.mlir"] and "--q_group_size 64" in deployed["block_0.mlir"]
    assert "io_alone" in deployed["block_cache_2.mlir"] and "--quantize F16" in deployed["vit.mlir"]
    assert not list((tmp_path / "out").glob("*.work"))
    assert compile_("--quantize", "w4f16").stdout == f"{bmodel}\n"
    assert calls(environment) == []


def test_the_vit_may_have_weights_of_its_own(compile_: Compile, environment: dict[str, str], tmp_path: Path) -> None:
    done = compile_("--quantize", "w4f16", "--vision_quantize", "w8f16")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out/tiny_int4_seq16_p8_b2_vit-w8f16_1dev.bmodel")
    deployed = {line.split("--mlir ")[1].split()[0]: line for line in calls(environment) if "deploy" in line}
    assert "--quantize W8F16" in deployed["vit.mlir"] and "--quantize W4F16" in deployed["block_0.mlir"]
    assert "--quantize F16" in deployed["lm_head.mlir"] and "--quantize F16" in deployed["embedding.mlir"]


def test_paths_are_relative_to_the_callers_folder(
    model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    python = str(Path(environment["PYTHON"]).relative_to(tmp_path))
    command = [str(MODELS / "compile.sh"), "--model_path", model.name, *OPTIONS, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env={**environment, "PYTHON": python}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out/tiny_fp16_seq16_p8_b2_1dev.bmodel")


def test_new_weights_are_compiled_again(compile_: Compile, environment: dict[str, str], model: Path) -> None:
    assert compile_().returncode == 0
    os.utime(model / "model.safetensors", (1, 1))
    assert compile_().returncode == 0 and len(transformed(environment)) == NETS


@pytest.mark.parametrize(
    ("fake", "said"), [("FAKE_SILENT", "embedding.log"), ("FAKE_FAIL", "no such operation")]
)
def test_a_failed_step_is_reported_and_the_next_run_continues_with_it(
    fake: str, said: str, compile_: Compile, environment: dict[str, str], tmp_path: Path
) -> None:
    failed = compile_(**{fake: "embedding"})
    assert failed.returncode == 1 and said in failed.stderr and "model_transform.py" in failed.stderr
    assert not list((tmp_path / "out").glob("*.bmodel"))
    assert compile_().returncode == 0
    assert transformed(environment)[0] == "embedding.onnx" and "block_0.onnx" not in transformed(environment)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_the_next_run_continues_where_a_killed_one_stopped(
    stop: signal.Signals, command: list[str], compile_: Compile, environment: dict[str, str],
    eventually: Callable[..., None],
) -> None:
    running = subprocess.Popen(command, env={**environment, "FAKE_HANG": "vit"}, start_new_session=True)
    try:
        eventually(lambda: Path(environment["FAKE_LOG"]).exists() and "vit.onnx" in transformed(environment), 60)
    finally:
        os.killpg(running.pid, stop)
        running.wait(10)
    assert running.returncode != 0
    assert compile_().returncode == 0 and transformed(environment) == ["vit.onnx"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--bogus", "1"), "--bogus"),
        (("--seq_length",), "--seq_length"),
        (("--seq_length", "none"), "none"),
        (("--vision_seq_length", "18"), "18 patches"),
        (("--prefill_lengths", "8,32"), "32 tokens"),
        # What the exporter would refuse, after the compiler was downloaded.
        (("--prefill_lengths", "16"), "16 tokens"), (("--vision_lengths", "16"), "16 patches"),
        (("--prefill_lengths", "8,8"), "8,8"), (("--prefill_lengths", "8,"), "8,"),
        (("--vision_lengths", "4 8"), "4 8"),
        (("--seq_length", "1"), "2 to 2048"), (("--seq_length", "2049"), "2 to 2048"),
        (("--quantize", "int3"), "int3"),
        (("--quantize", "w4bf16", "--lm_head_quantize", "w8f16"), "lm_head"),
        (("--quantize", "w4bf16", "--vision_quantize", "w8f16"), "--vision_quantize"),
        (("--vision_quantize", "int8"), "int8"),
        (("--route", "magic"), "magic"),
        (("--route", "llm_convert"), "--route onnx"),
        (("--", "--dynamic"), "--route llm_convert"),
        (("--model_path", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_options_are_one_sentence_and_exit_code_2(
    options: tuple[str, ...], named: str, compile_: Compile
) -> None:
    done = compile_(*options)
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_missing_python_310_is_reported(command: list[str], tmp_path: Path) -> None:
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TPU_ENV": str(tmp_path / "env"), "PYTHON": sys.executable,
            "PYTHON310": "/nowhere/python3.10"}
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert done.returncode == 1 and "Python 3.10" in done.stderr and "PYTHON310" in done.stderr
