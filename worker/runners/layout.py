"""Recognises the layout of a bmodel's nets by their names and shapes. These are the layouts that `SailRunner` can run:

| kind                | made by                              | known by                                          |
|---------------------|--------------------------------------|---------------------------------------------------|
| sophon-demo         | sophon-demo, deploy/models           | position_ids 3 x 1 x S                            |
| llm_convert static  | TPU-MLIR's llm_convert.py            | position_ids 3 x S                                |
| llm_convert dynamic | `--dynamic`                          | block_0 takes real lengths, and perhaps no mask   |
| llm_convert history | `--use_history_kv`                   | block_kv_0: prefill on top of a cache             |
| batched             | deploy/models, `--batch`             | block_cache_0 has a row for each slot, and `flush` |

Any of them may have stages: several prompt lengths, ViT sizes, or cache lengths of a step (`--chunk_length`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from sailq.shared.errors import Unsupported

from ..engine.families.family import Family, Maker, Sizes
from ..engine.families.registry import UNCONFIGURED
from ..engine.model import ModelSpec
from ..model_files.bmodel import Bmodel, BmodelNet, BmodelTensor, Stage

CHIP = "BM1684X"
_TABLE = "tpu.Gather.source"
"""How TPU-MLIR names a table in the file."""


@dataclass(frozen=True)
class Layout:
    """A model in a bmodel.

    Attributes:
        kind: its name, for people to read.
        slots: sequences that are decoded together.
        context: rows of a slot's cache.
        recent: rows that several slots keep together (see `kv_cache`); 0 for one slot.
        prompts: lengths at which tokens are prefilled, increasing; the last is the longest at once.
        patches: sizes of the ViT, increasing.
        side: most patches along a frame's side.
        caches: cache rows that a step can read, increasing; the last is `context`.
        dynamic_prompt, dynamic_vision: the nets run at the real length; its sizes are limits.
        history: prefill can go on after a first part (`block_kv_i`), so prompts may be as long as the context.
        masked: prefill takes a mask; else the nets are causal by themselves.
        chooses: `lm_head` returns the argmax token, no logits.
        greedy_head: there is a net that computes the argmax of the logits, and perhaps their sum.
        raw_pixels: the ViT takes 0..255; else normalised pixels.
        layers: blocks.
        nets: by name.
    """

    kind: str
    slots: int
    context: int
    recent: int
    prompts: tuple[int, ...]
    patches: tuple[int, ...]
    side: int
    caches: tuple[int, ...]
    dynamic_prompt: bool
    dynamic_vision: bool
    history: bool
    masked: bool
    chooses: bool
    greedy_head: bool
    raw_pixels: bool
    layers: int
    nets: Mapping[str, BmodelNet]

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt; at least one more must fit for the answer."""
        return self.context - 1 if self.history else min(self.prompts[-1], self.context - 1)

    @property
    def cache_dtype(self) -> str:
        return self.nets["block_cache_0"].stages[0].inputs[3].dtype

    @property
    def mask_dtype(self) -> str:
        return self.nets["block_cache_0"].stages[0].inputs[2].dtype

    @property
    def row(self) -> int:
        """Elements of a token's keys in one layer."""
        return prod(self.nets["block_cache_0"].stages[0].inputs[3].shape[2:])

    def stage(self, net: str, size: int) -> Stage:
        """The stage of a block or embedding whose first input has `size` rows. A dynamic net has only one."""
        stages = self.nets[net].stages
        return next((stage for stage in stages if _rows(stage.inputs[0]) == size), stages[0])

    def step(self, rows: int) -> Stage:
        """The stage of `block_cache_0` that reads a cache of `rows`."""
        return next(stage for stage in self.nets["block_cache_0"].stages if stage.inputs[3].shape[1] == rows)


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
        family = spec.family if spec else UNCONFIGURED
        layout = _layout(bmodel, layers, family)
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
            raise Unsupported(f"{bmodel.path} is not a complete model: it lacks the net {name}.")


def _layout(bmodel: Bmodel, layers: int, family: Family) -> Layout:
    nets = bmodel.nets
    block, step, vit = nets["block_0"], nets["block_cache_0"], nets["vit"]
    first, cached = block.stages[0], step.stages[0]
    slots, context = cached.inputs[3].shape[0], max(stage.inputs[3].shape[1] for stage in step.stages)
    if slots > 1 and len(cached.inputs) == 5:
        raise Unsupported(f"{bmodel.path} was compiled by an older version of sailq: compile it again.")
    history = "block_kv_0" in nets
    if slots > 1:
        kind = f"batched, {slots} slots"
    elif len(first.inputs[1].shape) == 3:
        kind = "sophon-demo"
    else:
        kind = f"llm_convert {'history' if history else 'dynamic' if block.dynamic else 'static'}"
    lengths = {_rows(stage.inputs[0]) for stage in block.stages} & {
        _rows(stage.inputs[0]) for stage in nets["embedding"].stages
    }
    scores = nets["lm_head"].stages[0].outputs[0]
    chooses = prod(scores.shape) == slots
    raw_pixels = vit.stages[0].inputs[0].name == "pixels"
    maker: Maker = "deploy/models" if raw_pixels else "llm_convert" if kind.startswith("llm") else "sophon-demo"
    patches = tuple(sorted(stage.inputs[0].shape[0] for stage in vit.stages))
    tables = [weight.bytes for weight in bmodel.weights.get("vit", ()) if weight.name == _TABLE]
    return Layout(
        kind, slots, context,
        recent=cached.inputs[5].shape[0] if slots > 1 else 0,
        prompts=tuple(sorted(lengths)),
        patches=patches,
        side=family.max_side(maker, patches[-1], tables),
        caches=tuple(sorted(stage.inputs[3].shape[1] for stage in step.stages)),
        dynamic_prompt=block.dynamic, dynamic_vision=vit.dynamic, history=history,
        masked=len(first.inputs) == 3,
        chooses=chooses,
        greedy_head=not chooses and "greedy_head" in nets and _takes(nets["greedy_head"].stages[0], scores, slots),
        raw_pixels=raw_pixels,
        layers=layers, nets=nets,
    )


def _takes(greedy_head: Stage, scores: BmodelTensor, slots: int) -> bool:
    """Whether greedy_head takes lm_head's output unchanged and gives one token per slot, and perhaps a sum. If not, the
    host chooses."""
    given, made = greedy_head.inputs, greedy_head.outputs
    return (
        len(given) == 1 and 0 < len(made) < 3 and (given[0].shape, given[0].dtype) == (scores.shape, scores.dtype)
        and [(prod(tensor.shape), tensor.dtype) for tensor in made] == [(slots, "i32"), (slots, "f32")][: len(made)]
    )


def _rows(tensor: BmodelTensor) -> int:
    """The number of tokens S of a tensor [1, S] or [1, S, H]."""
    return tensor.shape[1]


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
    if slots > 1 and "flush" not in nets:
        yield f"{slots} slots need the net flush"
        return
    cached = nets["block_cache_0"].stages[0]
    hidden, row = prod(cached.inputs[0].shape) // slots, prod(cached.inputs[3].shape[2:])
    vocabulary = 1 if layout.chooses else prod(nets["lm_head"].stages[0].outputs[0].shape) // slots
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
    yield from _dtype_complaints(layout)


def _sizes(
    layout: Layout, family: Family, hidden: int, row: int, vocabulary: int
) -> Iterator[tuple[str, list[tuple[Sizes, Sizes]]]]:
    """The number of elements of each net's inputs and outputs, one pair for each size of the net."""
    slots, context = layout.slots, layout.context
    yield "vit", [family.vit_elements(n, hidden) for n in layout.patches]
    lengths = {_rows(stage.inputs[0]) for name in ("embedding", "block_0") for stage in layout.nets[name].stages}
    yield "embedding", [((n,), (n * hidden,)) for n in sorted(lengths)]
    yield "embedding_cache", [((slots,), (slots * hidden,))]
    yield "lm_head", [((slots * hidden,), (slots * vocabulary,))]
    for index in range(layout.layers):
        yield f"block_{index}", [
            ((n * hidden, 3 * n, *((n * n,) if layout.masked else ())), (n * hidden, n * row, n * row))
            for n in sorted(lengths)
        ]
        if layout.history:
            yield f"block_kv_{index}", [
                ((n * hidden, 3 * n, context * row, context * row), (n * hidden, n * row, n * row)) for n in lengths
            ]
        recent = layout.recent * slots * row
        yield f"block_cache_{index}", [
            ((slots * hidden, 3 * slots, slots * (n + layout.recent + 1), *(2 * (slots * n * row,)),
              *(2 * (recent,) if recent else ())), (slots * hidden, slots * row, slots * row))
            for n in layout.caches
        ]
    if layout.recent:
        yield "flush", [((recent, recent), 2 * slots * (layout.recent * row,))]


def _dtype_complaints(layout: Layout) -> Iterator[str]:
    """Complaints about dtypes: all hidden states must have one dtype, and so must all of the cache."""
    hidden = layout.nets["lm_head"].stages[0].inputs[0].dtype
    for name, net in layout.nets.items():
        for stage in net.stages:
            if name.startswith("embedding") and stage.outputs[0].dtype != hidden:
                yield f"{name} gives hidden states of another dtype than lm_head takes"
            if name.startswith("block_"):
                cache = (*(stage.inputs[3:] if name.startswith("block_cache_") else ()), *stage.outputs[1:])
                if {stage.inputs[0].dtype, stage.outputs[0].dtype} != {hidden}:
                    yield f"{name} takes or gives hidden states of another dtype than lm_head"
                if {tensor.dtype for tensor in cache} != {layout.cache_dtype}:
                    yield f"{name} takes or gives cache rows of another dtype than block_cache_0"
            if name == "flush" and {tensor.dtype for tensor in (*stage.inputs, *stage.outputs)} != {layout.cache_dtype}:
                yield "flush takes or gives cache rows of another dtype than block_cache_0"
