"""Which layout a bmodel has, and what is wrong with it, from the file alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bmodel_files import qwen2_vl, write_bmodel
from sailq.shared.errors import Unsupported
from sailq.worker.catalog import resolve
from sailq.worker.engine.model import ModelSpec
from sailq.worker.runners.bmodel import BmodelNet, BmodelTensor, Stage, read_bmodel
from sailq.worker.runners.layout import Layout, read_layout

Nets = list[BmodelNet]


@pytest.fixture
def spec() -> ModelSpec:
    return replace(ModelSpec.load(resolve("sailq-tiny")), layers=2)


def layout(path: Path, nets: Nets, spec: ModelSpec | None = None, chip: str = "BM1684X") -> Layout:
    return read_layout(read_bmodel(write_bmodel(path / "a.bmodel", nets, chip=chip)), spec)


def changed(nets: Nets, name: str, change: Callable[[Stage], Stage]) -> Nets:
    return [replace(net, stages=tuple(map(change, net.stages))) if net.name == name else net for net in nets]


def test_sizes_are_those_of_the_stages(tmp_path: Path, spec: ModelSpec) -> None:
    found = layout(tmp_path, qwen2_vl(context=128, prompts=(128, 32, 64), patches=(48, 16)), spec)
    assert (found.kind, found.slots, found.context, found.layers) == ("sophon-demo", 1, 128, 2)
    assert (found.prompts, found.patches, found.caches) == ((32, 64, 128), (16, 48), (128,))
    assert found.longest_prompt == 127 and found.raw_pixels and found.masked and not found.chooses


def test_a_prompt_is_no_longer_than_its_longest_net(tmp_path: Path, spec: ModelSpec) -> None:
    assert layout(tmp_path, qwen2_vl(context=128, prompts=(32,)), spec).longest_prompt == 32


def test_slots_are_the_rows_of_a_step(tmp_path: Path, spec: ModelSpec) -> None:
    assert layout(tmp_path, qwen2_vl(slots=4), spec).slots == 4


def test_another_chip_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="BM1688.*BM1684X"):
        layout(tmp_path, qwen2_vl(), chip="BM1688")


@pytest.mark.parametrize("name", ["vit", "embedding", "embedding_cache", "lm_head", "block_1"])
def test_a_missing_net_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=rf"\b{name}\b"):
        layout(tmp_path, [net for net in qwen2_vl() if net.name != name])


def test_another_number_of_layers_is_told(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(Unsupported, match=r"3 .*block_cache_.* 2 layers"):
        layout(tmp_path, qwen2_vl(layers=3), spec)


@pytest.mark.parametrize(
    ("nets", "cause"),
    [
        (qwen2_vl(hidden=128), "128, 128 and 896.* 256, 128 and 896"),
        (qwen2_vl(row=(2, 128)), "256, 256 and 896"),
        (qwen2_vl(vocabulary=1000), "256, 128 and 1000"),
        (qwen2_vl(context=32), "64 tokens.* 32"),
        (qwen2_vl(slots=4, prompts=(2,)), "4 slots.* 2"),
        (changed(qwen2_vl(), "block_1", lambda stage: replace(stage, inputs=stage.inputs[:2])), "block_1 takes"),
        (changed(qwen2_vl(), "block_cache_1", lambda s: replace(s, outputs=s.outputs[:2])), "block_cache_1"),
        (changed(qwen2_vl(), "embedding", lambda stage: replace(
            stage, outputs=(replace(stage.outputs[0], dtype="bf16"),))), "another dtype"),
        (changed(qwen2_vl(), "block_1", lambda stage: replace(
            stage, outputs=(stage.outputs[0], *(replace(t, dtype="bf16") for t in stage.outputs[1:])))), "cache rows"),
    ],
)
def test_what_does_not_fit_is_told(nets: Nets, cause: str, tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(Unsupported, match=cause):
        layout(tmp_path, nets, spec)


@pytest.mark.parametrize("name", ["vit", "embedding", "block_0", "block_cache_0", "lm_head", "embedding_cache"])
@pytest.mark.parametrize("tensors", [(), (BmodelTensor("x", (), "f16"),), (BmodelTensor("x", (1,), "f16"),) * 5])
def test_nets_of_odd_shapes_are_refused(
    name: str, tensors: tuple[BmodelTensor, ...], tmp_path: Path, spec: ModelSpec
) -> None:
    odd = changed(qwen2_vl(), name, lambda _: Stage(tensors, tensors))
    for against in (spec, None):
        with pytest.raises(Unsupported):
            layout(tmp_path, odd, against)
