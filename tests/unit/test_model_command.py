"""`sailq model` on bmodels and on folders of models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from bmodel_files import last_row, of_family, qwen2_vl, write_bmodel
from commands import Done, invoke, refused, told

from sailq.shared.errors import Unsupported
from sailq.worker.model_files.bmodel import BmodelNet, BmodelTensor, Stage, Weight, read_bmodel
from sailq.worker.model_files.inspection import alike, inspect, quantisation, quantisation_by_name
from sailq.worker.model_files.model_list import models
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.model_files.published import PUBLISHED

NETS = Path(__file__).parents[1] / "data/nets.bmodel"
TINY = {"layers": 3, "hidden": 256, "row": (1, 128), "vocabulary": 896}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory with a bmodel that fits sailq-tiny's config.json."""
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(resolve("sailq-tiny") / name, folder)
    write_bmodel(folder / "tiny_f16.bmodel", qwen2_vl(context=128, prompts=(32, 128), patches=(16, 48), **TINY))
    return folder


def output(done: Done) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


# What a bmodel holds


def test_a_bmodel_is_described_in_words(directory: Path) -> None:
    lines = output(invoke("model", "inspect", directory / "tiny_f16.bmodel")).splitlines()

    said = dict(line.split("  ", 1) for line in lines[1:] if not line.startswith(" "))
    numbers = {name: re.findall(r"\b\d+\b", said[name]) for name in ("layout", "context", "prompt", "patches")}
    assert (numbers["layout"], numbers["context"]) == (["3"], ["128"])
    assert (numbers["prompt"], numbers["patches"]) == (["127", "32", "128"], ["48", "16", "48"])
    assert said["family"].split() == ["qwen2_vl"]
    assert "sophon-demo" in said["layout"] and "f16" in said["quantisation"]
    assert "BM1684X" in lines[0]


def test_a_model_directory_is_its_one_bmodel(directory: Path) -> None:
    assert output(invoke("model", "inspect", directory)) == output(
        invoke("model", "inspect", directory / "tiny_f16.bmodel"))


def test_a_directory_whose_config_is_another_models_says_so(directory: Path) -> None:
    write_bmodel(directory / "tiny_f16.bmodel", qwen2_vl(layers=2))

    said = json.loads(output(invoke("model", "inspect", "--json", directory)))

    assert said["layout"] is None and "3 layers" in said["problem"]
    assert said["problem"] in output(invoke("model", "inspect", directory))


@pytest.mark.parametrize("names", [[], ["a.bmodel", "b.bmodel"]])
def test_a_directory_must_hold_one_bmodel(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        shutil.copy(NETS, tmp_path / name)

    refused(invoke("model", "inspect", tmp_path), "unsupported", tmp_path, *names)


def test_json_has_every_number(directory: Path) -> None:
    said = json.loads(output(invoke("model", "inspect", "--json", directory)))

    assert (said["layout"], said["slots"], said["context"], said["longest_prompt"]) == ("sophon-demo", 1, 128, 127)
    assert said["family"] == "qwen2_vl"
    assert (said["prompts"], said["patches"], said["chip"]) == ([32, 128], [16, 48], "BM1684X")
    assert said["nets"][0]["stages"][1]["inputs"][0] == {"name": "hidden", "shape": [1, 128, 256], "dtype": "f16"}


def test_batched_nets_have_slots(tmp_path: Path) -> None:
    found = inspect(write_bmodel(tmp_path / "b.bmodel", qwen2_vl(slots=4)))

    assert found.layout is not None and found.problem is None
    assert found.layout.slots == 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_family_is_recognised_without_a_config(family: str, tmp_path: Path) -> None:
    """Also with nets that the layout of llm_convert's --batch has."""
    nets = of_family(last_row(qwen2_vl(), 2), family)
    said = json.loads(output(invoke("model", "inspect", "--json", write_bmodel(tmp_path / "b.bmodel", nets))))

    assert (said["family"], said["layout"], said["slots"]) == (family, "llm_convert batched, 2 slots", 2)


def test_nets_of_another_model_are_listed_and_the_missing_ones_named() -> None:
    said = output(invoke("model", "inspect", NETS))

    assert "net vit" in said
    assert "linear, stage 1" in said and "x f16 [1, 8, 64]" in said and "own io" in said and "dynamic" in said


def test_another_chips_bmodel_is_inspected_too(tmp_path: Path) -> None:
    said = output(invoke("model", "inspect", write_bmodel(tmp_path / "o.bmodel", qwen2_vl(), chip="BM1688")))

    assert "BM1688" in said and "block_0 to block_1" in said


def test_device_memory_is_in_bytes_for_a_program() -> None:
    said = json.loads(output(invoke("model", "inspect", "--json", NETS)))

    assert (said["device_bytes"], said["unshared_bytes"], said["layout"]) == (31236, 31236, None)
    assert said["memory"]["weights"] == 12288


def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    part = tmp_path / "part.bmodel"
    part.write_bytes(NETS.read_bytes()[:-1])

    refused(invoke("model", "inspect", part), "unsupported", part, f"{NETS.stat().st_size:,}")
    done = invoke("model", "inspect", "--json", part)
    assert json.loads(done.stdout)["error"]["code"] == "unsupported"
    assert told(done, 2).startswith("sailq: ")


def test_brackets_and_escapes_in_names_are_no_markup(tmp_path: Path) -> None:
    tensor = BmodelTensor("[red]x[/]", (1,), "f32")
    nets = [BmodelNet("[bold]net", (Stage((tensor,), (tensor,)),), dynamic=False, address_mode=0)]

    assert "[red]x[/] f32 [1]" in output(invoke("model", "inspect", write_bmodel(tmp_path / "[b].bmodel", nets)))
    colour = BmodelNet("\x1b[31m", nets[0].stages, dynamic=False, address_mode=0)
    with pytest.raises(Unsupported, match="colour.bmodel"):
        read_bmodel(write_bmodel(tmp_path / "colour.bmodel", [colour]))


# Quantisation: bytes of k's matrix, 256 x 128, as TPU-MLIR 1.30.2 left them of sailq-tiny


@pytest.mark.parametrize(
    ("operation", "size", "dtype", "expected"),
    [
        ("tpu.A16MatMul.weight", 16384, "f16", "w4f16"),
        ("tpu.A16MatMul.weight", 16384, "bf16", "w4bf16"),
        ("tpu.A16MatMul.weight", 32768, "f16", "w8f16"),
        ("tpu.MatMul.weight", 65536, "f16", "f16"),
        ("tpu.MatMul.weight", 65536, "bf16", "bf16"),
        ("tpu.MatMul.weight", 131072, "f32", "f32"),
        ("tpu.MatMul.weight", 32768, "f16", "int8"),
        ("tpu.MatMul.weight", 100, "f16", None),
        ("tpu.Gather.source", 65536, "f16", None),
    ],
)
def test_quantisation_is_read_from_the_weights(
    tmp_path: Path, operation: str, size: int, dtype: str, expected: str | None
) -> None:
    weights = [Weight("tpu.RMSNorm.gamma", 512), Weight(operation, 2 * size), Weight(operation, size)]
    file = write_bmodel(tmp_path / "q.bmodel", qwen2_vl(dtype=dtype), {"block_cache_0": weights})
    bmodel = read_bmodel(file)

    assert quantisation(bmodel) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2-vl-7b_int4_seq1536_1dev.bmodel", "int4"),
        ("qwen2-vl-2b-instruct-awq_w4bf16_seq2048_bm1684x_1dev.bmodel", "w4bf16"),
        ("sailq-tiny_bm1684x_f16_seq128_1dev.bmodel", "f16"),
        ("model.bmodel", None),
    ],
)
def test_quantisation_is_guessed_from_the_name(name: str, expected: str | None) -> None:
    assert quantisation_by_name(Path(name)) == expected


def test_layers_that_differ_are_not_shown_as_one(tmp_path: Path) -> None:
    nets = qwen2_vl(layers=4)
    nets[2] = BmodelNet("block_2", nets[2].stages, dynamic=True, address_mode=0)
    bmodel = read_bmodel(write_bmodel(tmp_path / "b.bmodel", nets))

    names = [name for name, _ in alike(bmodel)]
    assert names[:4] == ["block_0 to block_1", "block_2", "block_3", "block_cache_0 to block_cache_3"]


# Which models are at hand


def test_the_packaged_model_the_folder_and_what_can_be_fetched(directory: Path) -> None:
    lines = output(invoke("model", "list", directory.parent)).splitlines()

    assert lines[1].startswith("sailq-tiny")
    assert lines[2].startswith(str(directory)) and all(f in lines[2] for f in ("sophon-demo", "f16", "128"))
    assert all("deploy/models/download.sh" in line for line in lines[3:])
    assert len(lines) == 3 + len(PUBLISHED)


def test_the_list_as_json(directory: Path) -> None:
    said = json.loads(output(invoke("model", "list", directory.parent, "--json")))

    assert said[1]["path"] == str(directory) and said[1]["bytes"] > 0
    assert [one["name"] for one in said if one["path"] is None] == [published.name for published in PUBLISHED]


def test_a_missing_folder_is_not_an_error(tmp_path: Path) -> None:
    assert "sailq-tiny" in output(invoke("model", "list", tmp_path / "nowhere"))


def test_bmodels_without_a_config_parts_and_damaged_ones(tmp_path: Path) -> None:
    folder = tmp_path / "BM1684X/work"
    folder.mkdir(parents=True)
    nets = qwen2_vl(context=64)
    write_bmodel(tmp_path / "BM1684X/whole.bmodel", nets)
    write_bmodel(folder / "vit.bmodel", nets[-1:])
    (tmp_path / "cut.bmodel").write_bytes(NETS.read_bytes()[:100])
    (tmp_path / "seven.part").mkdir()
    shutil.copy(NETS, tmp_path / "seven.part")

    found = {model.name: model.what for model in models(tmp_path) if model.path and model.name != "sailq-tiny"}

    assert list(found) == [str(tmp_path / "cut.bmodel"), str(tmp_path / "BM1684X/whole.bmodel")]
    assert f"{NETS.stat().st_size:,}" in found[str(tmp_path / "cut.bmodel")]
    assert all(fact in found[str(tmp_path / "BM1684X/whole.bmodel")] for fact in ("sophon-demo", "64", "config.json"))


def test_a_directory_for_cpus_and_one_of_another_kind(tmp_path: Path) -> None:
    shutil.copytree(resolve("sailq-tiny"), tmp_path / "cpu")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')

    found = {Path(model.name).name: model.what for model in models(tmp_path)}

    assert "CPU" in found["cpu"] and "'bert'" in found["bert"]


def test_a_downloaded_model_is_not_listed_as_missing(tmp_path: Path) -> None:
    (tmp_path / PUBLISHED[0].name).mkdir()
    shutil.copy(NETS, tmp_path / PUBLISHED[0].name)

    missing = [model.name for model in models(tmp_path) if model.path is None]

    assert missing == [published.name for published in PUBLISHED[1:]]


@pytest.mark.parametrize("arguments", [("model",), ("model", "list", "--help"), ("model", "inspect", "--help")])
def test_help_has_examples(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)

    assert "inspect" in done.stdout or "sailq model list" in done.stdout
    assert "Examples:" in done.stdout or arguments == ("model",)
