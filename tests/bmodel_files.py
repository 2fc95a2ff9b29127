"""Writes bmodels without weights and commands, for code that reads only their structure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import flatbuffers

from sailq.worker.model_files.bmodel import BmodelNet, BmodelTensor, Stage, Weight

DTYPES = ("f32", "f16", "i8", "u8", "i16", "u16", "i32", "u32", "bf16", "i4", "u4")


def qwen2_vl(
    *, layers: int = 2, slots: int = 1, context: int = 64, prompts: tuple[int, ...] = (64,),
    patches: tuple[int, ...] = (16,), recent: int = 16, hidden: int = 256, row: tuple[int, int] = (1, 128),
    vocabulary: int = 896, dtype: str = "f16", greedy: bool = False,
) -> list[BmodelNet]:
    """The nets of sophon-demo's layout, or, with slots, of the batched one. `greedy`: and greedy_head."""

    def net(name: str, *stages: Stage, mode: int = 0) -> BmodelNet:
        return BmodelNet(name, stages, dynamic=False, address_mode=mode)

    def tensors(**shapes: tuple[int, ...]) -> tuple[BmodelTensor, ...]:
        integers = {"input_ids", "position_ids", "pos_ids"}
        return tuple(BmodelTensor(name, shape, "i32" if name in integers else dtype) for name, shape in shapes.items())

    ids = [Stage(tensors(input_ids=(1, n)), tensors(out=(1, n, hidden))) for n in prompts]
    blocks = [
        Stage(
            tensors(hidden=(1, n, hidden), position_ids=(3, 1, n), mask=(1, 1, n, n)),
            tensors(out=(1, n, hidden), k=(1, n, *row), v=(1, n, *row)),
        )
        for n in prompts
    ]
    past, newest = (slots, context, *row), (recent, slots, *row)
    shared = {"recent_k": newest, "recent_v": newest} if slots > 1 else {}
    columns = context + (recent if shared else 0) + 1
    step = Stage(
        tensors(
            hidden=(slots, 1, hidden), position_ids=(3, slots, 1), mask=(slots, 1, 1, columns),
            past_k=past, past_v=past, **shared,
        ),
        tensors(out=(slots, 1, hidden), k=(slots, 1, *row), v=(slots, 1, *row)),
    )
    rows = {f"{kind}_{slot}": (1, recent, *row) for kind in ("k", "v") for slot in range(slots)}
    flush = [net("flush", Stage(tensors(**shared), tensors(**rows)))] if shared else []
    views = [
        Stage(tensors(pixels=(n, 1176), pos_ids=(n, 2), mask=(1, n, n)), tensors(out=(n // 4, hidden))) for n in patches
    ]
    chosen = (BmodelTensor("token", (slots, 1), "i32"), BmodelTensor("sum", (slots, 1), "f32"))
    scores = BmodelTensor("logits", (slots, vocabulary), "f32" if greedy else dtype)
    return [
        *(net(f"block_{index}", *blocks) for index in range(layers)),
        *(net(f"block_cache_{index}", step, mode=1) for index in range(layers)),
        *flush,
        net("embedding", *ids),
        net("embedding_cache", Stage(tensors(input_ids=(slots, 1)), tensors(out=(slots, 1, hidden)))),
        net("lm_head", Stage(tensors(hidden=(slots, hidden)), (scores,))),
        *([net("greedy_head", Stage((scores,), chosen))] if greedy else []),
        net("vit", *views),
    ]


def of_family(
    nets: Iterable[BmodelNet], family: str, *, patches: tuple[int, ...] = (16,), hidden: int = 256, masked: bool = True,
    dynamic: bool = False, lengths: tuple[int, ...] = (64,), flat: bool = True, dtype: str = "f16",
) -> list[BmodelNet]:
    """The nets of `qwen2_vl` with another family's ViT, and `add` where it needs one.

    Args:
        masked: whether the ViT takes a mask of its grids.
        lengths, flat: tokens that `add` takes, and whether its tensors have one dimension, as llm_convert's.
    """

    def stage(n: int) -> Stage:
        given: dict[str, tuple[tuple[int, ...], str]] = {
            "input_states": ((n, 1536 if family == "qwen3_vl" else 1176), "f32"), "position_ids": ((n, 2), "i32"),
        }
        mask = {"mask": ((1, 1, n, n), "f32")} if masked else {}
        if family == "qwen3_vl":
            given |= {"pos_idx": ((n, 4), "i32"), "pos_weight": ((n, 4, 1), "f32"), **mask}
        elif family == "qwen2_5_vl":
            given |= {**mask, "window_mask": ((1, 1, n, n), "f32"), "reverse_index": ((n // 4,), "i32")}
        else:
            given |= mask
        made = [BmodelTensor(f"out_{i}", (n // 4, hidden), dtype) for i in range(4 if family == "qwen3_vl" else 1)]
        return Stage(tuple(BmodelTensor(name, *one) for name, one in given.items()), tuple(made))

    vit = BmodelNet("vit", tuple(map(stage, patches)), dynamic, 0)
    rows = [BmodelTensor("x", (n * hidden,) if flat else (1, n, hidden), dtype) for n in lengths]
    add = [BmodelNet("add", tuple(Stage((row, row), (row,)) for row in rows), False, 1)] if family == "qwen3_vl" else []
    return [*(net for net in nets if net.name != "vit"), vit, *add]


def last_row(nets: Iterable[BmodelNet], slots: int) -> list[BmodelNet]:
    """The nets of `qwen2_vl` for one slot in the layout of llm_convert's `--batch`, for so many."""

    def changed(net: BmodelNet) -> BmodelNet:
        if not net.name.startswith("block_"):
            return net
        (hidden, places, mask, *past), outputs = net.stages[0].inputs, net.stages[0].outputs
        if net.name.startswith("block_cache_"):
            columns, row = past[0].shape[1], past[0].shape[2:]
            inputs = (
                replace(hidden, shape=(slots, 1, hidden.shape[2])), replace(places, shape=(slots, 3, 1)),
                replace(mask, shape=(slots, 1, 1, columns)),
                *(replace(one, shape=(slots, columns, *row)) for one in past),
            )
            return replace(net, stages=(Stage(inputs, (replace(outputs[0], shape=inputs[0].shape),)),))
        return replace(net, stages=(Stage((hidden, replace(places, shape=(1, 3, places.shape[-1])), mask), outputs),))

    return [changed(net) for net in nets]


def write_bmodel(
    path: Path, nets: Iterable[BmodelNet], weights: Mapping[str, Iterable[Weight]] | None = None, chip: str = "BM1684X",
    *, neurons: int = 0, devices: int = 0,
) -> Path:
    """A file that `read_bmodel` reads as `nets` and `weights`, with neurons of so many bytes, for so many devices;
    returns `path`."""
    builder = flatbuffers.Builder()

    def table(**fields: Callable[[int], None]) -> int:
        builder.StartObject(22)
        for field, prepend in fields.items():
            prepend(int(field[1:]))
        return int(builder.EndObject())

    def reference(value: int) -> Callable[[int], None]:
        return lambda field: builder.PrependUOffsetTRelativeSlot(field, value, 0)

    def number(value: int) -> Callable[[int], None]:
        return lambda field: builder.PrependInt32Slot(field, value, 0)

    def size(value: int) -> Callable[[int], None]:
        return lambda field: builder.PrependUint64Slot(field, value, 0)

    def text(value: str) -> Callable[[int], None]:
        return reference(builder.CreateString(value))

    def vector(items: list[int]) -> Callable[[int], None]:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return reference(builder.EndVector())

    def dims(shape: tuple[int, ...]) -> Callable[[int], None]:
        builder.StartVector(8, len(shape), 8)
        for rows in reversed(shape):
            builder.PrependUint64(rows)
        return reference(builder.EndVector())

    def tensor(one: BmodelTensor) -> int:
        return table(
            f0=text(one.name), f1=number(DTYPES.index(one.dtype)), f5=vector([table(f0=dims(one.shape))])
        )

    def coefficients(net: BmodelNet) -> int:
        held = (weights or {}).get(net.name, ())
        return table(f3=vector([table(f0=text(weight.name), f2=size(weight.bytes)) for weight in held]))

    def stage(net: BmodelNet, one: Stage) -> int:
        inputs, outputs = ([tensor(t) for t in tensors] for tensors in (one.inputs, one.outputs))
        return table(
            f0=vector(inputs), f1=vector(outputs), f3=size(neurons), f4=reference(coefficients(net)),
            f5=number(int(net.dynamic)),
        )

    def whole(net: BmodelNet) -> int:
        stages = [stage(net, one) for one in net.stages]
        return table(f0=text(net.name), f3=vector(stages), f5=number(net.address_mode))

    whole_nets = vector([whole(net) for net in nets])
    builder.Finish(table(f3=text(chip), f4=whole_nets, f7=number(devices)))
    structure = bytes(builder.Output())
    path.write_bytes(struct.pack("<IIIQ44x", 0xFF55AAEE, 64, len(structure), 0) + structure)
    return path
