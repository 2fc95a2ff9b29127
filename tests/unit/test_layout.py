"""Which layout a bmodel has, and what is wrong with it, from the file alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bmodel_files import last_row, of_family, qwen2_vl, write_bmodel

from deploy.models.families import vision_nets
from sailq.shared.errors import Unsupported
from sailq.worker.engine.families.common import LONGEST_SIDE
from sailq.worker.engine.families.qwen3_vl import Qwen3VL
from sailq.worker.engine.families.registry import UNCONFIGURED
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.bmodel import BmodelNet, BmodelTensor, Stage, Weight, read_bmodel
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.layout import Layout
from sailq.worker.runners.layout_checks import read_layout

ROOT = Path(__file__).parents[2]
VISION_TABLE = LONGEST_SIDE // 14 + 1
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
    found = layout(tmp_path, qwen2_vl(slots=4, recent=8), spec)
    assert (found.slots, found.context, found.recent) == (4, 64, 8)


def test_several_slots_need_the_net_that_moves_their_recent_rows(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(Unsupported, match="4 slots need the net flush"):
        layout(tmp_path, [net for net in qwen2_vl(slots=4) if net.name != "flush"], spec)
    short = changed(qwen2_vl(slots=4), "flush", lambda stage: replace(stage, outputs=stage.outputs[1:]))
    with pytest.raises(Unsupported, match="stage 0 of flush"):
        layout(tmp_path, short, spec)
    wide = changed(qwen2_vl(slots=4), "flush", lambda stage: replace(
        stage, outputs=tuple(replace(tensor, dtype="f32") for tensor in stage.outputs)))
    with pytest.raises(Unsupported, match="flush takes or gives cache rows of another dtype"):
        layout(tmp_path, wide, spec)


def test_a_file_that_stores_each_slots_rows_apart_is_refused(tmp_path: Path, spec: ModelSpec) -> None:
    """As deploy/models made them before it had `flush`."""
    old = changed(qwen2_vl(slots=4), "block_cache_0", lambda stage: replace(stage, inputs=stage.inputs[:5]))
    with pytest.raises(Unsupported, match="compile it again"):
        layout(tmp_path, old, spec)


def test_another_chip_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="BM1688.*BM1684X"):
        layout(tmp_path, qwen2_vl(), chip="BM1688")


def test_a_file_for_two_devices_is_refused(tmp_path: Path) -> None:
    for devices in (0, 1):
        read_layout(read_bmodel(write_bmodel(tmp_path / "one.bmodel", qwen2_vl(), devices=devices)))
    with pytest.raises(Unsupported, match="for 2 devices"):
        read_layout(read_bmodel(write_bmodel(tmp_path / "two.bmodel", qwen2_vl(), devices=2)))


def test_the_rows_of_our_table_are_the_exporters() -> None:
    assert vision_nets.LONGEST_SIDE == LONGEST_SIDE


def test_the_longest_side_is_that_of_the_rotary_table(tmp_path: Path) -> None:
    """For each kind of layout. The file has 4,096 bytes for the table, enough for 102 rows of 40."""
    ours = qwen2_vl(patches=(1024,))
    demo = changed(ours, "vit", lambda stage: Stage(
        (replace(stage.inputs[0], name="pixel_values"), *stage.inputs[1:]), stage.outputs
    ))
    converted = demo
    for name in ("block_0", "block_1"):
        converted = changed(converted, name, lambda stage: Stage(
            (stage.inputs[0], replace(stage.inputs[1], shape=(3, 64)), *stage.inputs[2:]), stage.outputs
        ))
    assert [layout(tmp_path, nets).side for nets in (ours, demo, converted)] == [VISION_TABLE, 100, 1024]
    for pages, side in ((6, VISION_TABLE), (5, 512), (1, 102)):
        weights = {"vit": [Weight("tpu.Gather.source", pages * 4096)] * 2}
        assert read_layout(read_bmodel(write_bmodel(tmp_path / "a.bmodel", ours, weights))).side == side


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_family_is_that_of_the_vit(family: str, tmp_path: Path, spec: ModelSpec) -> None:
    nets = of_family(qwen2_vl(), family)
    for against in (None, replace(spec, family=UNCONFIGURED[family])):
        found = layout(tmp_path, nets, against)
        assert (found.family, found.vision_masked) == (family, True)
        assert (found.deepstack, found.adds) == ((3, (64,)) if family == "qwen3_vl" else (0, ()))


@pytest.mark.parametrize(("stated", "made"), [
    ("qwen3_vl", "qwen2_vl"), ("qwen2_vl", "qwen3_vl"), ("qwen2_5_vl", "qwen2_vl"), ("qwen2_vl", "qwen2_5_vl"),
    ("qwen3_vl", "qwen2_5_vl"), ("qwen2_5_vl", "qwen3_vl"),
])
def test_a_file_of_another_family_than_its_config_is_refused(
    stated: str, made: str, tmp_path: Path, spec: ModelSpec
) -> None:
    for masked in (True, False) if made == "qwen3_vl" else (True,):
        with pytest.raises(Unsupported, match=rf"a\.bmodel is a {made} model.*config\.json states {stated}\."):
            layout(tmp_path, of_family(qwen2_vl(), made, masked=masked), replace(spec, family=UNCONFIGURED[stated]))


def test_vision_features_that_are_missing_are_reported(tmp_path: Path, spec: ModelSpec) -> None:
    nets, deep = of_family(qwen2_vl(), "qwen3_vl"), replace(spec, family=UNCONFIGURED["qwen3_vl"])
    for outputs in (1, 3):
        few = changed(nets, "vit", lambda stage, n=outputs: replace(stage, outputs=stage.outputs[:n]))  # type: ignore[misc]
        for against in (deep, None):
            with pytest.raises(Unsupported, match=f"vit gives {outputs} outputs, not 4"):
                layout(tmp_path, few, against)
    with pytest.raises(Unsupported, match=r"lacks the net add\."):
        layout(tmp_path, [net for net in nets if net.name != "add"], deep)
    with pytest.raises(Unsupported, match="add takes 32 tokens, but prompts have up to 64"):
        layout(tmp_path, of_family(qwen2_vl(), "qwen3_vl", lengths=(32,)), deep)
    with pytest.raises(Unsupported, match="stage 1 of add"):
        layout(tmp_path, of_family(qwen2_vl(), "qwen3_vl", lengths=(64, 48)), deep)
    with pytest.raises(Unsupported, match="add takes or gives hidden states of another dtype"):
        layout(tmp_path, of_family(qwen2_vl(dtype="bf16"), "qwen3_vl"), deep)


def test_add_may_have_a_stage_for_each_length(tmp_path: Path) -> None:
    nets = of_family(qwen2_vl(prompts=(64, 16, 32)), "qwen3_vl", lengths=(64, 16, 32), flat=False)
    found = layout(tmp_path, nets)
    assert found.adds == (16, 32, 64)
    assert [found.adding(size).inputs[0].shape[1] for size in (1, 16, 17, 64)] == [16, 16, 32, 64]


def test_only_a_dynamic_vit_may_lack_the_mask(tmp_path: Path) -> None:
    assert not layout(tmp_path, of_family(qwen2_vl(), "qwen3_vl", masked=False, dynamic=True)).vision_masked
    with pytest.raises(Unsupported, match="of vit"):
        layout(tmp_path, of_family(qwen2_vl(), "qwen3_vl", masked=False))
    for dynamic in (False, True):  # its last input is no mask
        with pytest.raises(Unsupported, match="of vit"):
            layout(tmp_path, of_family(qwen2_vl(), "qwen2_5_vl", masked=False, dynamic=dynamic))


def test_slots_whose_new_rows_are_their_last_take_one_row_of_the_others_nets(
    tmp_path: Path, spec: ModelSpec
) -> None:
    found = layout(tmp_path, last_row(qwen2_vl(greedy=True), 3), spec)
    assert (found.kind, found.slots, found.rows) == ("llm_convert batched, 3 slots", 3, 1)
    assert (found.context, found.positions, found.recent) == (64, 64, 0)
    assert found.last_row and found.greedy_head and not found.chooses
    assert found.longest_prompt == 63
    assert layout(tmp_path, last_row(qwen2_vl(vocabulary=1), 3)).chooses
    for name in ("block_cache_1", "lm_head", "embedding_cache"):
        with pytest.raises(Unsupported, match=f"of {name}"):
            layout(tmp_path, changed(last_row(qwen2_vl(), 3), name, lambda stage: Stage(
                tuple(replace(one, shape=(5, *one.shape[1:])) for one in stage.inputs), stage.outputs)), spec)


def test_positions_are_the_rows_of_the_decoders_table(tmp_path: Path) -> None:
    """deploy/models' table has more rows than the cache where positions count seconds."""
    ours, others = qwen2_vl(), of_family(qwen2_vl(), "qwen2_5_vl")
    for pages, rows in ((1, 64), (2, 64), (8, 256)):
        weights = {"block_cache_0": [Weight("tpu.Gather.source", pages * 4096)] * 2}
        for nets, positions in ((ours, rows), (others, 64)):
            found = read_layout(read_bmodel(write_bmodel(tmp_path / "a.bmodel", nets, weights)))
            assert found.positions == positions


@pytest.mark.parametrize("name", ["vit", "embedding", "embedding_cache", "lm_head", "block_1"])
def test_a_missing_net_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=rf"\b{name}\b"):
        layout(tmp_path, [net for net in qwen2_vl() if net.name != name])


def test_a_wrong_number_of_layers_is_reported(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(Unsupported, match=r"3 .*block_cache_.* 2 layers"):
        layout(tmp_path, qwen2_vl(layers=3), spec)


@pytest.mark.parametrize(
    ("nets", "cause"),
    [
        (qwen2_vl(hidden=128), "128, 128 and 896.* 256, 128 and 896"),
        (qwen2_vl(row=(2, 128)), "256, 256 and 896"),
        (qwen2_vl(vocabulary=1000), "256, 128 and 1000"),
        (qwen2_vl(context=32), "64 tokens.* 32"),
        (changed(qwen2_vl(), "block_1", lambda stage: replace(stage, inputs=stage.inputs[:2])), "block_1 takes"),
        (changed(qwen2_vl(), "block_cache_1", lambda s: replace(s, outputs=s.outputs[:2])), "block_cache_1"),
        (changed(qwen2_vl(), "embedding", lambda stage: replace(
            stage, outputs=(replace(stage.outputs[0], dtype="bf16"),))), "another dtype"),
        (changed(qwen2_vl(), "block_1", lambda stage: replace(
            stage, outputs=(stage.outputs[0], *(replace(t, dtype="bf16") for t in stage.outputs[1:])))), "cache rows"),
    ],
)
def test_nets_that_do_not_fit_are_reported(nets: Nets, cause: str, tmp_path: Path, spec: ModelSpec) -> None:
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


@pytest.mark.parametrize(("place", "dtype"), [(0, "i32"), (1, "f32"), (2, "i32")])
def test_the_vit_takes_whole_numbers_where_the_host_gives_them(
    tmp_path: Path, spec: ModelSpec, place: int, dtype: str
) -> None:
    """SAIL takes the bytes of any tensor of the right size."""
    nets = changed(qwen2_vl(), "vit", lambda stage: replace(stage, inputs=tuple(
        replace(tensor, dtype=dtype) if index == place else tensor for index, tensor in enumerate(stage.inputs)
    )))
    with pytest.raises(Unsupported, match=f"vit takes .* as {dtype}"):
        layout(tmp_path, nets, spec)


def test_learned_positions_must_lie_in_the_vits_table() -> None:
    family, table = Qwen3VL(position_side=48, vision_width=128), 48 * 48 * 128 * 2
    assert family.max_side("deploy/models", 64, [table, 4096]) == 4096 // 32
    with pytest.raises(Unsupported, match="learned positions"):
        family.max_side("deploy/models", 64, [table - 4096, 4096])
