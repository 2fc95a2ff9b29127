"""The memory that a bmodel takes in a box's heaps, from its nets' parts of it.

libsophon 0.5.1 allocates a block at a time, in the order of the nets in the file. Each block goes into the first heap
with room for it (bmlib_memory.cpp: `bm_alloc_gmem`, with the heaps in the order of `bm_get_carveout_heap_id`).
BMRuntime accepts all three heaps for weights, commands, neurons and the nets' own inputs (bmruntime.cpp:
`m_neuron_heap_mask`; bmruntime_bmodel.cpp: `BmCoeff::Register`). When a net needs more neurons than those before it,
BMRuntime allocates them anew and keeps the old ones (`update_max_neuron_mem`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..doctor.ion_heaps import MB, SPARE_MB
from .timings import Timing, Timings

KINDS = ("weights", "embeddings", "caches", "commands", "activations")
"""What memory is for. Caches: the inputs and outputs of the nets that read them."""
ORDER = ("npu", "vpp", "vpu")
"""The heaps, in the order in which each block tries them."""
SPARE = SPARE_MB * MB
"""Bytes that must stay free, for a worker's own tensors."""


@dataclass(frozen=True)
class Sizes:
    """What compile.sh is told.

    Attributes:
        prompts: lengths of prefill, increasing; `context` is one more, which compile.sh always compiles.
        patches: sizes of the ViT, increasing.
        vision_quantize: the ViT's weights: f16 or w8f16.
    """

    slots: int
    context: int
    prompts: tuple[int, ...]
    patches: tuple[int, ...]
    vision_quantize: str


class Block(NamedTuple):
    """An allocation. `kind`: one of `KINDS`."""

    kind: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes, by kind and by heap."""

    kinds: Mapping[str, int]
    heaps: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def blocks(timings: Timings, sizes: Sizes) -> Iterator[Block]:
    """What loading allocates, in order, but for `flush` and the embeddings' commands, which take little. compile.sh
    combines the nets in the order of their names. Nets of one layer share its weights, and so do the two embeddings,
    and the ViTs.

    Raises:
        NotTimed: see `Timings.timing`.
    """
    timing = timings.timing
    block = [timing("block", length) for length in sorted({*sizes.prompts, sizes.context})]
    step = timing("block_cache", sizes.context, sizes.slots)
    nets: list[tuple[str | None, list[Timing]]] = [
        *[("weights", block)] * timings.layers, *[(None, [step])] * timings.layers,
        ("embeddings", [Timing(0.0, timings.embedding_bytes)]),
        *[("weights", [timing(head, batch=sizes.slots)]) for head in ("greedy_head", "lm_head")],
        ("weights", [timing("vit", size, quantize=sizes.vision_quantize) for size in sizes.patches]),
    ]
    computing = 0
    for kind, stages in nets:
        if kind is not None:
            yield Block(kind, max(stage.weights for stage in stages))
        if (most := max(stage.neurons for stage in stages)) > computing:
            computing = most
            yield Block("activations", most)
        for stage in stages:
            yield Block("caches", stage.io)
            yield Block("commands", stage.commands)


def place(needed: list[Block], heaps: Mapping[str, int]) -> Memory | None:
    """Where the blocks go in heaps of so many bytes; None: one finds no room, or too little is left."""
    used = dict.fromkeys(ORDER, 0)
    kinds = dict.fromkeys(KINDS, 0)
    for kind, size in needed:
        heap = next((heap for heap in ORDER if used[heap] + size <= heaps[heap]), None)
        if heap is None:
            return None
        used[heap] += size
        kinds[kind] += size
    return Memory(kinds, used) if sum(used.values()) + SPARE <= sum(heaps.values()) else None
