"""What a bmodel holds: its nets by name, and the sizes that their shapes state."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...shared.errors import Unsupported
from ..engine.model import ModelSpec


@dataclass(frozen=True)
class SailTensor:
    """One input or output of a net; `dtype`: SAIL's."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class SailNet:
    name: str
    inputs: tuple[SailTensor, ...]
    outputs: tuple[SailTensor, ...]


@dataclass(frozen=True)
class Layout:
    """sophon-demo's nets at batch 1.

    Attributes:
        context: rows of a layer's cache.
        prompt: most tokens of a prompt.
        patches: most patches of one temporal grid.
    """

    vit: SailNet
    embedding: SailNet
    embedding_cache: SailNet
    blocks: tuple[SailNet, ...]
    block_caches: tuple[SailNet, ...]
    lm_head: SailNet
    context: int
    prompt: int
    patches: int


def read_layout(engine: Any, spec: ModelSpec, bmodel: Path) -> Layout:
    """The layout of what `engine` (an EngineLLM) has loaded; raises Unsupported where it is not `spec`'s."""
    names = set(engine.get_graph_names())

    def net(name: str) -> SailNet:
        if name not in names:
            raise Unsupported(f"{bmodel} lacks the net {name}; {spec.directory} states {spec.layers} layers.")
        return _net(engine, name)

    blocks, caches = (
        tuple(net(f"{kind}_{index}") for index in range(spec.layers)) for kind in ("block", "block_cache")
    )
    vit, embedding, embedding_cache, head = map(net, ("vit", "embedding", "embedding_cache", "lm_head"))
    if len(caches[0].inputs) != 5 or len(caches[0].inputs[3].shape) != 4 or len(blocks[0].inputs) != 3:
        raise Unsupported(f"{bmodel} has block nets of another layout.")
    rows, prompt, patches = caches[0].inputs[3].shape[1], prod(embedding.inputs[0].shape), vit.inputs[0].shape[0]
    layout = Layout(vit, embedding, embedding_cache, blocks, caches, head, rows, prompt, patches)
    wrong = _mismatch(layout, spec)
    if wrong:
        raise Unsupported(f"{bmodel} does not fit {spec.directory}: {wrong}.")
    return layout


def _net(engine: Any, name: str) -> SailNet:
    def tensors(kind: str) -> tuple[SailTensor, ...]:
        names = getattr(engine, f"get_{kind}_names")(name)
        shape, dtype = getattr(engine, f"get_{kind}_shape"), getattr(engine, f"get_{kind}_dtype")
        return tuple(SailTensor(n, tuple(shape(name, i)), dtype(name, i)) for i, n in enumerate(names))

    return SailNet(name, tensors("input"), tensors("output"))


def _mismatch(layout: Layout, spec: ModelSpec) -> str | None:
    """The first tensor whose size or dtype is not what the runner will pass, in words."""
    hidden, prompt, context, patches = spec.hidden_size, layout.prompt, layout.context, layout.patches
    row = spec.kv_heads * spec.head_dim
    pixels = 3 * spec.temporal_patch_size * spec.patch_size**2
    wanted = [
        (layout.vit, (patches * pixels, patches * 2, patches**2), (patches // spec.merge_size**2 * hidden,)),
        (layout.embedding, (prompt,), (prompt * hidden,)),
        (layout.embedding_cache, (1,), (hidden,)),
        (layout.lm_head, (hidden,), (spec.vocab_size,)),
        *(
            (net, (prompt * hidden, 3 * prompt, prompt**2), (prompt * hidden, prompt * row, prompt * row))
            for net in layout.blocks
        ),
        *(
            (net, (hidden, 3, context + 1, context * row, context * row), (hidden, row, row))
            for net in layout.block_caches
        ),
    ]
    for net, inputs, outputs in wanted:
        for kind, tensors, sizes in (("input", net.inputs, inputs), ("output", net.outputs, outputs)):
            found = tuple(prod(tensor.shape) for tensor in tensors)
            if found != sizes:
                return f"{net.name} has {kind}s of {found} elements, not {sizes}"
    if prompt > context:
        return f"prompts of {prompt} tokens are longer than the cache of {context}"
    return _mixed_dtypes(layout)


def _mixed_dtypes(layout: Layout) -> str | None:
    """Tensors that are passed from net to net have one dtype: those of hidden states, and those of the cache."""
    hidden = layout.lm_head.inputs[0].dtype
    cache = layout.block_caches[0].inputs[3].dtype
    layers = (*layout.blocks, *layout.block_caches)
    for net in (layout.embedding, layout.embedding_cache, *layers):
        if net.outputs[0].dtype != hidden:
            return f"{net.name} gives hidden states of another dtype than lm_head takes"
    for net in layers:
        passed = [tensor.dtype for tensor in (*net.inputs[3:], *net.outputs[1:])]
        if net.inputs[0].dtype != hidden or any(dtype != cache for dtype in passed):
            return f"{net.name} takes or gives another dtype than the other layers"
    return None
