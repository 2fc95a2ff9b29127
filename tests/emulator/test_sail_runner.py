"""The calls of the SAIL runner to the device, and what it refuses before a call."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pytest
from conftest import Compile
from tiny import BATCHED, GREEDY, LLM_CONVERT, RIGHT_SIZED, load

from deploy.models.layout import RECENT
from sailq.shared.errors import Unsupported
from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners import emulator
from sailq.worker.runners.base import Prompt
from sailq.worker.runners.chip import Chip
from sailq.worker.runners.kv_cache import BatchedCache
from sailq.worker.runners.sail import SailRunner


class Meter:
    """Counts the calls to the emulator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: Counter[str] = Counter()
        self.to_device: list[int] = []
        self.copies = 0
        self.inputs: dict[str, dict[int, Any]] = {}
        process, update, copy = emulator.EngineLLM.process, emulator.Tensor.update_data, emulator.Tensor.sync_d2d

        def count_process(engine: Any, graph: str, inputs: Any, outputs: Any) -> None:
            self.runs[graph] += 1
            self.inputs[graph] = inputs
            process(engine, graph, inputs, outputs)

        def count_update(tensor: Any, data: Any) -> None:
            self.to_device.append(data.nbytes)
            update(tensor, data)

        def count_copy(tensor: Any, *arguments: Any) -> None:
            self.copies += 1
            copy(tensor, *arguments)

        monkeypatch.setattr(emulator.EngineLLM, "process", count_process)
        monkeypatch.setattr(emulator.Tensor, "update_data", count_update)
        monkeypatch.setattr(emulator.Tensor, "sync_d2d", count_copy)


def test_a_step_runs_each_net_once_and_copies_no_cache(
    samples: list[PreparedPrompt], compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, runner = _loaded(compiled(*BATCHED))
    generations = [engine.start(one, GREEDY, slot) for slot, one in enumerate(samples[:3])]
    meter = Meter(monkeypatch)
    engine.step(generations)
    layers = [f"block_cache_{index}" for index in range(3)]
    assert meter.runs == Counter(["embedding_cache", *layers, "lm_head", "greedy_head"])
    mask = 4 * (128 + RECENT + 1) * 2  # slots × (own and recent rows, and the token itself) × bytes
    others = sum(meter.to_device) - mask
    print(f"\nfigure: a step at batch 4: {sum(meter.runs.values())} runs, {others} bytes to the device besides a mask "
          f"of {mask}, {meter.copies} copies on it")
    assert mask in meter.to_device and others <= 16 * 1024
    assert meter.copies == 0
    for layer in layers:  # the runtime would copy a cache that is in other memory
        own = runner._chip.own_inputs(layer, 0)
        for index in (3, 4, 5, 6):
            assert meter.inputs[layer][index].address == own[index].address


def test_old_device_memory_is_not_in_a_cache(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of 60,000 or a NaN passes through any mask, and the runtime does not clear memory."""
    file = compiled(*BATCHED)
    found, own_inputs = list[Any](), Chip.own_inputs

    def littered(chip: Chip, net: str, stage: int) -> Mapping[int, Any]:
        own = own_inputs(chip, net, stage)
        for index in (3, 4, 5, 6):
            tensor = own[index]
            tensor.handle.store(tensor.address, np.full(tensor.nbytes() // 2, np.nan, np.float16).tobytes())
            found.append(tensor)
        return own

    monkeypatch.setattr(Chip, "own_inputs", littered)
    _, runner = _loaded(file)
    assert len(found) == 4 * 3
    assert isinstance(runner._cache, BatchedCache)
    tensors = [*chain(*runner._cache.layers), *chain(*runner._cache._recent)]
    assert len(tensors) == 4 * 3 and not any(in_memory(tensor).any() for tensor in tensors)


def in_memory(tensor: Any) -> np.ndarray:
    """The memory as the chip sees it, float16."""
    return np.frombuffer(tensor.handle.load(tensor.address, tensor.nbytes()), np.float16)


def test_prefill_and_vision_run_at_the_smallest_size(
    samples: list[PreparedPrompt], compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(compiled(*RIGHT_SIZED))
    meter = Meter(monkeypatch)
    sizes = {}
    for prepared in samples[:5]:
        engine.start(prepared, GREEDY, 0)
        sizes[len(prepared.tokens)] = meter.inputs["block_0"][0].shape()[1]
        for medium in prepared.media[-1:]:
            _, h, w = medium.grid
            assert meter.inputs["vit"][0].shape()[0] == (36 if h * w <= 36 else 48)
    assert all(size == min(s for s in (32, 64, 128) if s >= length) for length, size in sizes.items())
    assert len(set(sizes.values())) > 1


def test_a_dropped_runner_frees_its_device_at_once(compiled: Compile) -> None:
    """Without a cycle of references: the next model would otherwise share the device with it for a while."""
    gc.disable()
    try:
        engine = load(compiled(*RIGHT_SIZED))
        runner = weakref.ref(engine.runner)
        del engine
        assert runner() is None
    finally:
        gc.enable()


def test_the_runner_checks_what_it_is_given(compiled: Compile) -> None:
    _, runner = _loaded(compiled(*RIGHT_SIZED))
    one, position = np.zeros(1, np.int32), np.zeros((3, 1), np.int32)
    nothing = np.empty((0, 1, runner.hidden), np.float32), np.empty(0, np.int32)
    for slot, tokens in ((1, one), (-1, one), (0, one + 10_000), (0, one - 1), (0, one.astype(np.int64))):
        with pytest.raises(ValueError):
            runner.prefill([Prompt(slot, tokens, position, *nothing)])
    with pytest.raises(ValueError, match="position"):
        runner.prefill([Prompt(0, one, position + runner.context, *nothing)])
    with pytest.raises(ValueError, match="empty"):
        runner.decode([0], one, position)
    with pytest.raises(ValueError, match="fit"):
        runner.vision([(np.zeros((400, 1176), np.uint8), (1, 20, 20))])


def test_a_bmodel_that_chooses_itself_refuses_to_sample(compiled: Compile) -> None:
    engine, hello = load(compiled(*LLM_CONVERT)), Message(role="user", content=(TextPart(text="Hello!"),))
    for options in (GenerationOptions(temperature=1.0), GenerationOptions(repetition_penalty=1.1)):
        with pytest.raises(Unsupported, match="temperature 0"):
            engine.prepare([hello], {}, options)


def _loaded(bmodel: Any) -> tuple[Engine, SailRunner]:
    engine = load(bmodel)
    runner = engine.runner
    assert isinstance(runner, SailRunner)
    assert ModelSpec.load(resolve("sailq-tiny")).hidden_size == runner.hidden
    return engine, runner
