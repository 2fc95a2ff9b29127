"""`sailq worker` on a device that is not there, or with a bmodel that is not the model's: the error unsupported, in one
sentence that names what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bmodel_files import qwen2_vl, write_bmodel
from commands import invoke, refused

from sailq.worker.model_files.model_paths import resolve

TINY = {"layers": 3, "hidden": 256, "row": (1, 128), "vocabulary": 896}


def test_a_damaged_or_foreign_bmodel_is_refused_before_the_device_is_touched(redis_url: str, tmp_path: Path) -> None:
    good = write_bmodel(tmp_path / "good.bmodel", qwen2_vl(**TINY))
    cut = tmp_path / "cut.bmodel"
    cut.write_bytes(good.read_bytes()[:-100])
    lacking = [net for net in qwen2_vl(**TINY) if net.name != "block_2"]
    files = {
        cut: f"{good.stat().st_size:,}",
        write_bmodel(tmp_path / "chip.bmodel", qwen2_vl(**TINY), chip="BM1688"): "BM1688",
        write_bmodel(tmp_path / "net.bmodel", lacking): "block_2",
        write_bmodel(tmp_path / "hidden.bmodel", qwen2_vl(**{**TINY, "hidden": 512})): "512",
        tmp_path / "none.bmodel": "none.bmodel",
        resolve("sailq-tiny") / "config.json": "bmodel",
    }
    for file, fact in files.items():
        done = invoke("worker", "--device", "emulator", "--bmodel", file, url=redis_url)
        refused(done, "unsupported", file, fact)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--device", "gpu"), "'gpu'"),
        (("--device", "tpu:x"), "'tpu:x'"),
        (("--device", "emulator"), str(resolve("sailq-tiny"))),
        (("--bmodel", "a.bmodel"), "--device"),
    ],
)
def test_a_missing_device_is_reported(options: tuple[str, ...], named: str, redis_url: str) -> None:
    refused(invoke("worker", *options, url=redis_url), "unsupported", named)


def test_without_sail_a_tpu_says_where_to_get_it(redis_url: str, tmp_path: Path) -> None:
    bmodel = write_bmodel(tmp_path / "tiny.bmodel", qwen2_vl(**TINY))
    done = invoke("worker", "--device", "tpu:0", "--bmodel", bmodel, url=redis_url)
    refused(done, "unsupported", "deploy/se7/README.md", "--device emulator")


def test_of_two_bmodels_one_must_be_named(redis_url: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(resolve("sailq-tiny") / name, tmp_path)
    for name in ("a", "b"):
        write_bmodel(tmp_path / f"{name}.bmodel", qwen2_vl(**TINY))
    done = invoke("worker", "--model", tmp_path, "--device", "emulator", url=redis_url)
    refused(done, "unsupported", tmp_path, "a.bmodel", "b.bmodel")


def test_the_number_of_slots_must_be_that_of_the_bmodel(redis_url: str, tmp_path: Path) -> None:
    bmodel = write_bmodel(tmp_path / "tiny.bmodel", qwen2_vl(**TINY))
    done = invoke("worker", "--device", "emulator", "--bmodel", bmodel, "--slots", 4, url=redis_url)
    refused(done, "unsupported", bmodel.name, 1, 4)
