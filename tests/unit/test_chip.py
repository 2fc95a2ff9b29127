"""The single file that calls SAIL, and the order of its calls."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmodel_files import qwen2_vl, write_bmodel

import sailq.worker
from sailq.shared.errors import DeviceFailed, Unsupported
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.bmodel import BmodelTensor
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners import emulator
from sailq.worker.runners.chip import Chip
from sailq.worker.runners.sail import SailRunner

WORKER = Path(sailq.worker.__file__).parent
CALLS = {"update_data", "asnumpy", "sync_s2d", "sync_d2s", "sync_d2d", "process", "EngineLLM"}
"""SAIL's names."""


def callers(name: str) -> set[str]:
    """The worker's files that use an attribute of this name, the emulator's own aside."""
    files = (file for file in WORKER.rglob("*.py") if "emulator" not in str(file))
    return {
        file.name for file in files for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == name
    }


def test_only_one_file_moves_data_through_sail() -> None:
    assert {name: callers(name) for name in CALLS} == dict.fromkeys(CALLS, {"chip.py"})


class Recorder:
    """Stands in for SAIL's module, its tensors and its engine: keeps what is asked of it, in order."""

    def __init__(self) -> None:
        self.Dtype, self.asked = self, list[tuple[str, Any]]()
        self.BM_FLOAT32, self.BM_FLOAT16, self.BM_BFLOAT16, self.BM_INT32 = "f32", "f16", "bf16", "i32"

    def shape(self) -> list[int]:
        return [4]

    def dtype(self) -> str:
        return self.BM_FLOAT16

    def asnumpy(self) -> np.ndarray:
        self.asked.append(("asnumpy", ()))
        return np.zeros(4, np.uint16)

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any, **named: Any) -> Recorder:
            self.asked.append((name, given or set(named)))
            return self

        return ask


def test_a_write_is_flushed_and_a_read_is_fresh() -> None:
    sail = Recorder()
    chip = Chip(sail, 0, Path("some.bmodel"))
    sail.asked.clear()
    tensor = chip.new(BmodelTensor("x", (4,), "f16"))
    chip.write(chip.view(tensor, [2], 1), np.ones(4))
    chip.read(tensor)
    (made, how), (viewed, by), *rest = sail.asked
    assert (made, how) == ("Tensor", {"handle", "shape", "dtype", "own_sys_data", "own_dev_data"})
    assert (viewed, by) == ("Tensor", {"src", "shape", "offset"})  # by position, SAIL would try nine other constructors
    assert [name for name, _ in rest] == ["update_data", "sync_s2d", "sync_d2s", "asnumpy"]


def raising(error: Exception) -> Any:
    def fail(*given: Any, **named: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(("call", "error"), [
    ("get_available_tpu_num", emulator.SailDeviceError("bm_dev_getcount failed")),
    ("EngineLLM", emulator.SailEngineError("EngineLLM related error!")),
    ("EngineLLM", RuntimeError("bmlib api fail")),
    ("Handle", emulator.SailDeviceError("init device failure")),
    ("Tensor", RuntimeError("no enough device memory")),
])
def test_a_bmodel_that_sail_does_not_load_is_refused(call: str, error: Exception, tmp_path: Path) -> None:
    sail = Recorder()
    sail.get_available_tpu_num = lambda: 1  # type: ignore[attr-defined]
    setattr(sail, call, raising(error))
    spec = replace(ModelSpec.load(resolve("sailq-tiny")), layers=2)
    with pytest.raises(Unsupported, match=f"cannot be loaded: .*{error}"):
        SailRunner(spec, write_bmodel(tmp_path / "a.bmodel", qwen2_vl()), sail)


@pytest.mark.parametrize("call", ["process", "update_data", "sync_s2d", "sync_d2s", "asnumpy", "sync_d2d"])
def test_later_errors_of_sail_are_device_failures(call: str) -> None:
    sail = Recorder()
    chip = Chip(sail, 0, Path("some.bmodel"))
    setattr(sail, call, raising(emulator.SailEngineError("Engine related error!")))
    with pytest.raises(DeviceFailed, match="SailEngineError: Engine related error!"):
        chip.run("lm_head", [], [])
        chip.write(sail, np.ones(4))
        chip.read(sail)
        chip.copy(sail, 0, sail, 0, 4)


def test_sail_is_asked_once_for_memory_of_which_it_warns() -> None:
    sail = Recorder()
    chip = Chip(sail, 0, Path("some.bmodel"))
    sail.asked.clear()
    assert chip.shared_inputs("block_kv_0") is chip.shared_inputs("block_kv_0")
    assert sail.asked == [("get_input_tensors_addrmode0", {"graph_name"})]
