"""The emulator beside SAIL's source: constructors, exceptions, and a box's memory. tests/data/nets.bmodel has a net of
each address mode."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from sailq.worker.runners import emulator as sail
from sailq.worker.runners.emulator.bmruntime import Memory

NETS = str(ROOT / "tests/data/nets.bmodel")
LINEAR, RELU = "linear", "relu"
"""y = x W, float16 [1, 4 or 8, 64], with memory of its own for x and y; max(x, 0), float32 [2, 64], dynamic."""


@pytest.fixture(scope="module")
def engine() -> sail.EngineLLM:
    return sail.EngineLLM(NETS, [0])


@pytest.fixture(scope="module")
def handle() -> sail.Handle:
    return sail.Handle(0)


def new(handle: sail.Handle, *shape: int, dtype: sail.Dtype = sail.Dtype.BM_FLOAT16) -> sail.Tensor:
    return sail.Tensor(handle=handle, shape=list(shape), dtype=dtype, own_sys_data=False, own_dev_data=True)


def halves(*shape: int, seed: int = 0) -> np.ndarray:
    """Half-precision numbers in the form that SAIL takes."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16).view(np.uint16)


def test_sails_exceptions_have_no_base_of_their_own() -> None:
    for name in ("SailDeviceError", "SailTensorError", "SailEngineError", "SailUnknownError", "NotSupport"):
        assert getattr(sail, name).__bases__ == (Exception,)
    assert not hasattr(sail, "SailRuntimeError")  # SAIL does not register it


def test_an_engine_is_created_as_in_sail() -> None:
    data = (ROOT / "tests/data/nets.bmodel").read_bytes()
    for engine in (
        sail.EngineLLM(NETS, [0]), sail.EngineLLM(NETS, 0, [0]), sail.EngineLLM(bmodel_path=NETS, tpu_ids=[0]),
        sail.EngineLLM(bmodel_path=NETS, flags=0, tpu_ids=[0]),
        sail.EngineLLM(bmodel_bytes=data, bmodel_size=len(data), tpu_ids=[0]),
    ):
        assert engine.get_graph_names() == [LINEAR, RELU]


@pytest.mark.parametrize(("raised", "make"), [
    (sail.SailEngineError, lambda folder: sail.EngineLLM(str(folder / "none.bmodel"), [0])),
    (sail.SailEngineError, lambda folder: sail.EngineLLM(str(ROOT / "README.md"), [0])),
    (sail.SailEngineError, lambda folder: sail.EngineLLM(NETS, [])),
    (sail.SailEngineError, lambda folder: sail.EngineLLM(bmodel_bytes=b"none", bmodel_size=4, tpu_ids=[0])),
    (sail.SailDeviceError, lambda folder: sail.EngineLLM(NETS, [1])),
    (sail.SailDeviceError, lambda folder: sail.Handle(1)),
    (TypeError, lambda folder: sail.EngineLLM(NETS)),
    (TypeError, lambda folder: sail.Tensor(sail.Handle(0), shape=[1], offset=0)),
])
def test_invalid_objects_raise_as_in_sail(raised: type[Exception], make: Callable, tmp_path: Any) -> None:
    with pytest.raises(raised):
        make(tmp_path)


def test_a_tensor_raises_as_in_sail(handle: sail.Handle) -> None:
    x, other = new(handle, 1, 8, 64), new(handle, 1, 8, 64, dtype=sail.Dtype.BM_FLOAT32)
    for ask in (
        lambda: sail.Tensor(src=x, shape=[1, 8, 64], offset=1),
        lambda: sail.Tensor(x, [], 0),
        lambda: x.update_data(halves(8, 64)),
        lambda: x.update_data(np.zeros((1, 8, 64), np.int64)),
        lambda: x.sync_d2d(other, 0, 0, 1),
        lambda: x.sync_d2d(x, 0, 1, 512),
    ):
        with pytest.raises(sail.SailTensorError):
            ask()


def test_value_error_is_raised_where_sail_would_kill_the_process(
    engine: sail.EngineLLM, handle: sail.Handle, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y, wide = new(handle, 1, 4, 64), new(handle, 1, 4, 64), new(handle, 1, 6, 64)
    small, whole = sail.Tensor(src=y, shape=[1, 3, 64], offset=0), new(handle, 1, 4, 64, dtype=sail.Dtype.BM_INT32)
    for inputs, outputs in (({}, {0: y}), ({0: x}, {}), ({0: None}, {0: y}), ({0: whole}, {0: y}), ({0: wide}, {0: y}),
                            ({0: x}, {0: small})):
        with pytest.raises(ValueError):
            engine.process(LINEAR, inputs, outputs)
    for arguments in ((x, -1, 0, 1), (x, 0, 0, -1)):
        with pytest.raises(ValueError):
            y.sync_d2d(*arguments)
    with pytest.raises(ValueError):
        sail.Tensor(handle, [1], sail.Dtype.BM_INT32)  # SAIL's default: no memory
    with pytest.raises(IndexError):
        engine.process("nothing", {}, {})
    x.update_data(halves(1, 4, 64))
    engine.process(graph_name=LINEAR, input={0: x}, output={0: y})
    assert y.asnumpy().any() and capfd.readouterr().out == ""


FRESH = f"""
from sailq.worker.runners import emulator as sail

engine = sail.EngineLLM({NETS!r}, [0])
own = [engine.get_input_tensors({LINEAR!r}, stage)[0] for stage in (0, 1)]
own.append(engine.get_input_tensors_addrmode0({RELU!r})[0])
print(min(len(set(tensor.handle.load(tensor.address, tensor.nbytes()))) for tensor in own))
"""
"""Prints how many different bytes each tensor's memory has, at least."""


def test_the_nets_memory_begins_with_random_bytes() -> None:
    """In a process of its own: where another model was loaded before, the nets get its memory."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 100


def test_a_new_tensor_begins_with_zeros(engine: sail.EngineLLM, handle: sail.Handle) -> None:
    assert engine.get_input_tensors(RELU) == {}
    assert not new(handle, 1, 8, 64).asnumpy().any()


def test_the_chip_does_not_see_what_was_not_flushed(engine: sail.EngineLLM, handle: sail.Handle) -> None:
    x, y, values = engine.get_input_tensors(LINEAR, 1)[0], new(handle, 1, 8, 64), halves(1, 8, 64)
    right = linear(engine, handle, values)
    linear(engine, handle, halves(1, 8, 64, seed=1))  # leaves other values in x's memory
    x.update_data(values)
    assert np.array_equal(x.asnumpy(), values)  # the host sees it
    engine.process(LINEAR, {0: x}, {0: y})
    assert not np.array_equal(y.asnumpy(), right)
    x.sync_s2d()
    engine.process(LINEAR, {0: x}, {0: y})
    assert np.array_equal(y.asnumpy(), right)


def test_a_late_eviction_overwrites_what_the_chip_wrote(engine: sail.EngineLLM, handle: sail.Handle) -> None:
    own, x, values = engine.get_input_tensors(LINEAR, 1)[0], new(handle, 1, 8, 64), halves(1, 8, 64)
    right, left = linear(engine, handle, values), halves(1, 8, 64, seed=1)
    x.update_data(values)
    for flush in (own.sync_s2d, lambda: None):
        own.update_data(left)
        flush()
        engine.process(LINEAR, {0: x}, {0: own})
        own.sync_d2s()
        assert np.array_equal(own.asnumpy(), right if flush == own.sync_s2d else left)


def test_a_read_without_a_sync_returns_old_data(engine: sail.EngineLLM, handle: sail.Handle) -> None:
    own, x, values = engine.get_input_tensors(LINEAR, 1)[0], new(handle, 1, 8, 64), halves(1, 8, 64)
    before = own.asnumpy()
    x.update_data(values)
    engine.process(LINEAR, {0: x}, {0: own})
    assert np.array_equal(own.asnumpy(), before)
    own.sync_d2s()
    assert np.array_equal(own.asnumpy(), linear(engine, handle, values))


def test_a_views_sync_copies_and_leaves_the_lines_dirty(engine: sail.EngineLLM, handle: sail.Handle) -> None:
    """`Tensor_CC(src, shape, offset)` sets sys_data_ but not own_sys_data_is_mmap_."""
    own, x, y = engine.get_input_tensors(LINEAR, 1)[0], new(handle, 1, 8, 64), new(handle, 1, 8, 64)
    values = halves(1, 8, 64)
    view = sail.Tensor(src=own, shape=[1, 8, 64], offset=0)
    view.update_data(values)
    view.sync_s2d()
    engine.process(LINEAR, {0: own}, {0: y})
    assert np.array_equal(y.asnumpy(), linear(engine, handle, values))
    x.update_data(halves(1, 8, 64, seed=1))
    engine.process(LINEAR, {0: x}, {0: own})
    own.sync_d2s()
    assert np.array_equal(own.asnumpy(), values)  # evicted: overwrites the chip's data


def test_memory_that_a_box_cannot_map_is_refused_as_in_sail(
    engine: sail.EngineLLM, handle: sail.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsophon's bm_mem_mmap_device_mem takes whole pages; SAIL maps a net's own in address mode 1 when it loads."""
    memory = handle.allocate(8192)
    inside = Memory(address=memory.address + 64, size=1024)
    with pytest.raises(RuntimeError, match="bmlib api fail"):
        sail.Tensor.of_net(handle, engine, inside, [1, 8, 64], sail.Dtype.BM_FLOAT16)
    with pytest.raises(ValueError, match="1023 bytes"):
        sail.Tensor.of_net(
            handle, engine, Memory(address=memory.address, size=1023), [1, 8, 64], sail.Dtype.BM_FLOAT16
        )
    handle.free(memory)
    mapped: list[list[int]] = []
    of_net = sail.Tensor.of_net

    def note(*given: Any) -> sail.Tensor:
        mapped.append(given[3])
        return of_net(*given)

    monkeypatch.setattr(sail.Tensor, "of_net", note)
    sail.EngineLLM(NETS, [0])
    assert mapped == [[1, 4, 64], [1, 4, 64], [1, 8, 64], [1, 8, 64]]  # only x and y of each stage of LINEAR


def linear(engine: sail.EngineLLM, handle: sail.Handle, values: np.ndarray) -> np.ndarray:
    """The net's output for these values, computed in memory that is not mapped."""
    x, y = new(handle, *values.shape), new(handle, *values.shape)
    x.update_data(values)
    engine.process(LINEAR, {0: x}, {0: y})
    return y.asnumpy()
