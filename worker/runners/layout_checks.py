"""Reads the layout of a bmodel, and checks the nets for everything that `SailRunner` needs of them: SAIL would kill the
process, or corrupt memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from sailq.shared.errors import Unsupported

from ..engine.families.family import Family, Sizes
from ..engine.families.registry import UNCONFIGURED, model_type
from ..engine.model import ModelSpec
from ..model_files.bmodel import Bmodel, Stage
from .layout import Layout, describe, rows_of, slots_of

CHIP = "BM1684X"


def read_layout(bmodel: Bmodel, spec: ModelSpec | None = None) -> Layout:
    """The layout of a bmodel, checked for what `SailRunner` needs and, if given, against `spec`.

    Raises:
        Unsupported: another chip, missing nets, shapes or dtypes that do not fit each other or `spec`.
    """
    if bmodel.chip != CHIP:
        raise Unsupported(f"{bmodel.path} is compiled for {bmodel.chip or 'an unknown chip'}, not for the {CHIP}.")
    if bmodel.devices > 1:
        raise Unsupported(
            f"{bmodel.path} is compiled for {bmodel.devices} devices, but a worker uses one: use a file for one device."
        )
    layers = sum(name.startswith("block_cache_") for name in bmodel.nets)
    if spec is not None and layers != spec.layers:
        raise Unsupported(
            f"{bmodel.path} has {layers} nets block_cache_*; {spec.directory}/config.json states {spec.layers} layers."
        )
    _require_nets(bmodel, layers)
    try:
        name, family = _family(bmodel, spec)
        if family.deepstack and "add" not in bmodel.nets:
            raise _incomplete(bmodel, "add")
        layout = describe(bmodel, name, family)
        complaint = next(_complaints(layout, spec, family), None)
    except IndexError:
        raise Unsupported(f"{bmodel.path} has the net names of a model, but an unknown layout.") from None
    if complaint:
        raise Unsupported(f"{bmodel.path} does not fit {spec.directory if spec else 'itself'}: {complaint}.")
    return layout


def _require_nets(bmodel: Bmodel, layers: int) -> None:
    names = ["vit", "embedding", "embedding_cache", "lm_head"]
    names += [f"{kind}_{index}" for index in range(max(layers, 1)) for kind in ("block", "block_cache")]
    for name in names:
        if name not in bmodel.nets:
            raise _incomplete(bmodel, name)


def _incomplete(bmodel: Bmodel, net: str) -> Unsupported:
    return Unsupported(f"{bmodel.path} is not a complete model: it lacks the net {net}.")


def _family(bmodel: Bmodel, spec: ModelSpec | None) -> tuple[str, Family]:
    """The family of `spec`, or else the one whose ViT is most like the bmodel's, and its `model_type`. Raises
    Unsupported if the bmodel is of another family than `spec`."""
    vit = bmodel.nets["vit"].stages[0]
    hidden = prod(bmodel.nets["block_cache_0"].stages[0].inputs[0].shape) // slots_of(bmodel)
    likeness = {name: _likeness(vit, family, hidden) for name, family in UNCONFIGURED.items()}
    nearest = max(likeness, key=lambda name: likeness[name])
    if spec is None:
        return nearest, UNCONFIGURED[nearest]
    stated = model_type(spec.family)
    if likeness[nearest] > max(_likeness(vit, spec.family, hidden), likeness[stated]):
        raise Unsupported(
            f"{bmodel.path} is a {nearest} model, by the inputs and outputs of its vit; {spec.directory}/config.json "
            f"states {stated}."
        )
    return stated, spec.family


def _likeness(vit: Stage, family: Family, hidden: int) -> int:
    """How many inputs and outputs of a ViT have the sizes of a family's; those that one has more than the other count
    against it."""
    found = [prod(tensor.shape) for tensor in vit.inputs], [prod(tensor.shape) for tensor in vit.outputs]
    sizes = family.vit_elements(vit.inputs[0].shape[0], hidden)
    return sum(
        sum(map(int.__eq__, has, takes)) - abs(len(has) - len(takes)) for has, takes in zip(found, sizes, strict=True)
    )


def _complaints(layout: Layout, spec: ModelSpec | None, family: Family) -> Iterator[str]:
    """Complaints about what the runner would pass but a net does not take. The ViT is checked against `family`, and the
    other nets against `spec`, or else against the bmodel's own first nets."""
    nets, slots, context = layout.nets, layout.slots, layout.context
    if not layout.prompts:
        yield "embedding and block_0 have no length in common"
        return
    if layout.prompts[-1] > context:
        yield f"prompts of {layout.prompts[-1]} tokens are longer than the cache of {context}"
    if layout.history and context % layout.prompts[-1]:
        yield f"a cache of {context} is not a multiple of the {layout.prompts[-1]} tokens that are prefilled at once"
    if slots > 1 and len(layout.caches) > 1:  # the part of a cache for all slots would not be contiguous
        yield f"{slots} slots go with one length of the cache, not with {layout.caches}"
    if slots > 1 and not layout.last_row and not layout.recent:
        yield "it was compiled by an older version of sailq: compile it again"
        return
    if layout.recent and "flush" not in nets:
        yield f"{slots} slots need the net flush"
        return
    if layout.deepstack != family.deepstack:
        yield (
            f"its vit gives {1 + layout.deepstack} outputs, not {1 + family.deepstack}: vision features are added "
            f"after each of the first {family.deepstack} layers"
        )
        return
    if family.deepstack and layout.adds[-1] < layout.prompts[-1]:
        yield f"its net add takes {layout.adds[-1]} tokens, but prompts have up to {layout.prompts[-1]}"
    cached = nets["block_cache_0"].stages[0]
    hidden, row = prod(cached.inputs[0].shape) // slots, prod(cached.inputs[3].shape[2:])
    vocabulary = 1 if layout.chooses else prod(nets["lm_head"].stages[0].outputs[0].shape) // layout.rows
    if spec is not None:
        wanted = (spec.hidden_size, spec.kv_heads * spec.head_dim, 1 if layout.chooses else spec.vocab_size)
        if (hidden, row, vocabulary) != wanted:
            yield (
                f"hidden size, cache row and vocabulary are {hidden}, {row} and {vocabulary}, not "
                f"{wanted[0]}, {wanted[1]} and {wanted[2]}"
            )
    for name, sizes in _sizes(layout, family, hidden, row, vocabulary):
        for index, stage in enumerate(nets[name].stages):
            found = tuple(tuple(prod(t.shape) for t in tensors) for tensors in (stage.inputs, stage.outputs))
            if found not in sizes:
                yield f"stage {index} of {name} takes and gives {found} elements, where {sizes[0]} were expected"
    yield from _dtype_complaints(layout, family)


def _sizes(
    layout: Layout, family: Family, hidden: int, row: int, vocabulary: int
) -> Iterator[tuple[str, list[tuple[Sizes, Sizes]]]]:
    """The number of elements of each net's inputs and outputs, one pair for each size of the net."""
    slots, rows = layout.slots, layout.rows
    yield "vit", [_vit_elements(layout, family, n, hidden) for n in layout.patches]
    lengths = {rows_of(stage.inputs[0]) for name in ("embedding", "block_0") for stage in layout.nets[name].stages}
    yield "embedding", [((n,), (n * hidden,)) for n in sorted(lengths)]
    yield "embedding_cache", [((rows,), (rows * hidden,))]
    yield "lm_head", [((rows * hidden,), (rows * vocabulary,))]
    if family.deepstack:
        yield "add", [((n * hidden, n * hidden), (n * hidden,)) for n in layout.prompts]
    for index in range(layout.layers):
        yield f"block_{index}", [
            ((n * hidden, 3 * n, *((n * n,) if layout.masked else ())), (n * hidden, n * row, n * row))
            for n in sorted(lengths)
        ]
        if layout.history:
            past = layout.context * row
            yield f"block_kv_{index}", [
                ((n * hidden, 3 * n, past, past), (n * hidden, n * row, n * row)) for n in lengths
            ]
        yield f"block_cache_{index}", [_step_elements(layout, n, hidden, row) for n in layout.caches]
    if layout.recent:
        recent = layout.recent * slots * row
        yield "flush", [((recent, recent), 2 * slots * (layout.recent * row,))]


def _vit_elements(layout: Layout, family: Family, size: int, hidden: int) -> tuple[Sizes, Sizes]:
    """A ViT without a mask lacks the last input."""
    inputs, outputs = family.vit_elements(size, hidden)
    return inputs if layout.vision_masked else inputs[:-1], outputs


def _step_elements(layout: Layout, columns: int, hidden: int, row: int) -> tuple[Sizes, Sizes]:
    """Of a block_cache over a cache of so many columns."""
    slots, recent = layout.slots, layout.recent * layout.slots * row
    past = 2 * (slots * columns * row,)
    if layout.last_row:
        return (slots * hidden, 3 * slots, slots * columns, *past), (slots * hidden,)
    return (
        (slots * hidden, 3 * slots, slots * (columns + layout.recent + 1), *past, *(2 * (recent,) if recent else ())),
        (slots * hidden, slots * row, slots * row),
    )


def _dtype_complaints(layout: Layout, family: Family) -> Iterator[str]:
    """Complaints about dtypes: the ViT must take whole numbers where `family` gives them, all hidden states must have
    one dtype, and so must all of the cache."""
    merge = family.merge_size
    smallest = np.float32(0), *family.vit_inputs([(merge, merge)], merge**2)
    for stage in layout.nets["vit"].stages:
        for tensor, value in zip(stage.inputs, smallest, strict=False):  # a ViT without a mask lacks the last
            if tensor.dtype not in (("i32",) if value.dtype == np.int32 else ("f32", "f16", "bf16")):
                yield f"vit takes {tensor.name} as {tensor.dtype}"
    hidden = layout.nets["lm_head"].stages[0].inputs[0].dtype
    for name, net in layout.nets.items():
        for stage in net.stages:
            if name.startswith("embedding") and stage.outputs[0].dtype != hidden:
                yield f"{name} gives hidden states of another dtype than lm_head takes"
            if name == "add" and {tensor.dtype for tensor in (*stage.inputs, *stage.outputs)} != {hidden}:
                yield "add takes or gives hidden states of another dtype than lm_head"
            if name.startswith("block_"):
                cache = (*(stage.inputs[3:] if name.startswith("block_cache_") else ()), *stage.outputs[1:])
                if {stage.inputs[0].dtype, stage.outputs[0].dtype} != {hidden}:
                    yield f"{name} takes or gives hidden states of another dtype than lm_head"
                if {tensor.dtype for tensor in cache} != {layout.cache_dtype}:
                    yield f"{name} takes or gives cache rows of another dtype than block_cache_0"
            if name == "flush" and {tensor.dtype for tensor in (*stage.inputs, *stage.outputs)} != {layout.cache_dtype}:
                yield "flush takes or gives cache rows of another dtype than block_cache_0"
