"""`sailq worker` on a device that is not there, or with a bmodel that is not the model's: one sentence, exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bmodel_files import qwen2_vl, write_bmodel
from commands import sailq, told
from sailq.worker.catalog import resolve

TINY = {"layers": 3, "hidden": 256, "row": (1, 128), "vocabulary": 896}


def refused(url: str, *options: object) -> str:
    return told(sailq("worker", *options, url=url), code=2)


def test_a_damaged_or_foreign_bmodel_is_refused_before_the_device_is_touched(redis_url: str, tmp_path: Path) -> None:
    good = write_bmodel(tmp_path / "good.bmodel", qwen2_vl(**TINY))
    cut = tmp_path / "cut.bmodel"
    cut.write_bytes(good.read_bytes()[:-100])
    lacking = [net for net in qwen2_vl(**TINY) if net.name != "block_2"]
    files = {
        cut: "cut short",
        write_bmodel(tmp_path / "chip.bmodel", qwen2_vl(**TINY), chip="BM1688"): "compiled for BM1688",
        write_bmodel(tmp_path / "net.bmodel", lacking): "lacks the net block_2",
        write_bmodel(tmp_path / "hidden.bmodel", qwen2_vl(**{**TINY, "hidden": 512})): "hidden size",
        tmp_path / "none.bmodel": "no file",
        resolve("sailq-tiny") / "config.json": "not a bmodel",
    }
    for file, cause in files.items():
        assert cause in refused(redis_url, "--device", "emulator", "--bmodel", file)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--device", "gpu"), "no device 'gpu'"),
        (("--device", "tpu:x"), "no device 'tpu:x'"),
        (("--device", "emulator"), "holds no bmodel"),
        (("--bmodel", "a.bmodel"), "name its device"),
    ],
)
def test_a_device_that_is_not_there_is_told(options: tuple[str, ...], cause: str, redis_url: str) -> None:
    assert cause in refused(redis_url, *options)


def test_without_sail_a_tpu_says_where_to_get_it(redis_url: str, tmp_path: Path) -> None:
    bmodel = write_bmodel(tmp_path / "tiny.bmodel", qwen2_vl(**TINY))
    assert "deploy/se7/README.md" in refused(redis_url, "--device", "tpu:0", "--bmodel", bmodel)


def test_of_two_bmodels_one_must_be_named(redis_url: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(resolve("sailq-tiny") / name, tmp_path)
    for name in ("a", "b"):
        write_bmodel(tmp_path / f"{name}.bmodel", qwen2_vl(**TINY))
    assert "2 bmodels" in refused(redis_url, "--model", tmp_path, "--device", "emulator")


def test_slots_are_the_files_own(redis_url: str, tmp_path: Path) -> None:
    bmodel = write_bmodel(tmp_path / "tiny.bmodel", qwen2_vl(**TINY))
    line = refused(redis_url, "--device", "emulator", "--bmodel", bmodel, "--slots", 4)
    assert "has 1 slots, not 4" in line
