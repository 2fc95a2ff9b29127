"""Recognises the layout of a bmodel's nets by their names and shapes. These are the layouts that `SailRunner` can run:

| kind                | made by                    | known by                                                     |
|---------------------|----------------------------|--------------------------------------------------------------|
| sophon-demo         | sophon-demo, deploy/models | position_ids 3 x 1 x S                                       |
| llm_convert static  | TPU-MLIR's llm_convert.py  | position_ids 3 x S                                           |
| llm_convert dynamic | `--dynamic`                | block_0 takes real lengths, and perhaps no mask              |
| llm_convert history | `--use_history_kv`         | block_kv_0: prefill on top of a cache                        |
| llm_convert batched | `--batch`                  | block_cache_0 has a row for each slot, and gives states only |
| batched             | deploy/models, `--batch`   | block_cache_0 has a row for each slot, and `flush`           |

Any of them may have stages: several prompt lengths, ViT sizes, or cache lengths of a step (`--chunk_length`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ..engine.families.family import Family, Maker
from ..model_files.bmodel import Bmodel, BmodelNet, BmodelTensor, Stage

_TABLE = "tpu.Gather.source"
"""How TPU-MLIR names a table in the file."""


@dataclass(frozen=True)
class Layout:
    """A model in a bmodel.

    Attributes:
        kind: its name, for people to read.
        family: the `model_type` of its family.
        slots: sequences that are decoded together.
        context: rows of a slot's cache.
        positions: rows of the decoder's rotary table.
        recent: rows that several slots keep together (see `kv_cache`); 0 if there are none.
        last_row: a step writes a token's keys and values into the last row of its slot, and `embedding_cache` and
            `lm_head` take one slot at a time.
        prompts: lengths at which tokens are prefilled, increasing; the last is the longest at once.
        patches: sizes of the ViT, increasing.
        side: most patches along a frame's side.
        deepstack: layers after which more vision features are added: the outputs of the ViT after the first.
        adds: lengths at which the net `add` adds them, increasing.
        caches: cache rows that a step can read, increasing; the last is `context`.
        dynamic_prompt, dynamic_vision: the nets run at the real length; its sizes are limits.
        history: prefill can go on after a first part (`block_kv_i`), so prompts may be as long as the context.
        masked: prefill takes a mask; else the nets are causal by themselves.
        vision_masked: the ViT takes a mask for its patches; else a launch takes one grid.
        chooses: `lm_head` returns the argmax token, no logits.
        greedy_head: there is a net that computes the argmax of the logits, and perhaps their sum.
        raw_pixels: the ViT takes 0..255; else normalised pixels.
        layers: blocks.
        nets: by name.
    """

    kind: str
    family: str
    slots: int
    context: int
    positions: int
    recent: int
    last_row: bool
    prompts: tuple[int, ...]
    patches: tuple[int, ...]
    side: int
    deepstack: int
    adds: tuple[int, ...]
    caches: tuple[int, ...]
    dynamic_prompt: bool
    dynamic_vision: bool
    history: bool
    masked: bool
    vision_masked: bool
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
    def rows(self) -> int:
        """Slots that `embedding_cache` and `lm_head` take at a time."""
        return 1 if self.last_row else self.slots

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
        return next((stage for stage in stages if rows_of(stage.inputs[0]) == size), stages[0])

    def step(self, rows: int) -> Stage:
        """The stage of `block_cache_0` that reads a cache of `rows`."""
        return next(stage for stage in self.nets["block_cache_0"].stages if stage.inputs[3].shape[1] == rows)

    def adding(self, size: int) -> Stage:
        """The smallest stage of `add` that takes `size` tokens."""
        stages = self.nets["add"].stages
        return min((stage for stage in stages if prod(stage.inputs[0].shape) >= size * self.hidden), key=_elements)

    @property
    def hidden(self) -> int:
        """Elements of a hidden state."""
        return prod(self.nets["lm_head"].stages[0].inputs[0].shape) // self.rows


def describe(bmodel: Bmodel, name: str, family: Family) -> Layout:
    """The layout of a bmodel that has the nets of a model of this family. Raises IndexError if they are of no known
    layout."""
    nets = bmodel.nets
    block, step, vit = nets["block_0"], nets["block_cache_0"], nets["vit"]
    first, cached, view = block.stages[0], step.stages[0], vit.stages[0]
    slots, context = slots_of(bmodel), max(stage.inputs[3].shape[1] for stage in step.stages)
    hidden = prod(cached.inputs[0].shape) // slots
    history, last_row = "block_kv_0" in nets, slots > 1 and len(cached.outputs) == 1
    if slots > 1:
        kind = f"{'llm_convert ' if last_row else ''}batched, {slots} slots"
    elif len(first.inputs[1].shape) == 3:
        kind = "sophon-demo"
    else:
        kind = f"llm_convert {'history' if history else 'dynamic' if block.dynamic else 'static'}"
    lengths = _lengths(block.stages) & _lengths(nets["embedding"].stages)
    scores, rows = nets["lm_head"].stages[0].outputs[0], 1 if last_row else slots
    chooses = prod(scores.shape) == rows
    raw_pixels = view.inputs[0].name == "pixels"
    maker: Maker = "deploy/models" if raw_pixels else "llm_convert" if kind.startswith("llm") else "sophon-demo"
    patches = tuple(sorted(stage.inputs[0].shape[0] for stage in vit.stages))
    takes, _ = family.vit_elements(patches[-1], hidden)
    adds = nets["add"].stages if "add" in nets else ()
    return Layout(
        kind, name, slots, context,
        positions=_positions(maker, context, cached.inputs[3].shape[-1], _tables(bmodel, "block_cache_0")),
        recent=cached.inputs[5].shape[0] if len(cached.inputs) > 5 else 0,
        last_row=last_row,
        prompts=tuple(sorted(lengths)),
        patches=patches,
        side=family.max_side(maker, patches[-1], _tables(bmodel, "vit")),
        deepstack=len(view.outputs) - 1,
        adds=tuple(sorted(prod(stage.inputs[0].shape) // hidden for stage in adds)),
        caches=tuple(sorted(stage.inputs[3].shape[1] for stage in step.stages)),
        dynamic_prompt=block.dynamic, dynamic_vision=vit.dynamic, history=history,
        masked=len(first.inputs) == 3,
        vision_masked=not (vit.dynamic and takes[-1] == patches[-1] ** 2 and len(view.inputs) == len(takes) - 1),
        chooses=chooses,
        greedy_head=not chooses and "greedy_head" in nets and _takes(nets["greedy_head"].stages[0], scores, rows),
        raw_pixels=raw_pixels,
        layers=sum(name.startswith("block_cache_") for name in nets), nets=nets,
    )


def _elements(stage: Stage) -> int:
    """Of a stage's first input."""
    return prod(stage.inputs[0].shape)


def slots_of(bmodel: Bmodel) -> int:
    """The sequences that are decoded together. Raises IndexError if the net for it has an unknown shape."""
    slots = bmodel.nets["block_cache_0"].stages[0].inputs[3].shape[0]
    if not slots:
        raise IndexError
    return slots


def rows_of(tensor: BmodelTensor) -> int:
    """The number of tokens S of a tensor [1, S] or [1, S, H]."""
    return tensor.shape[1]


def _lengths(stages: Iterable[Stage]) -> set[int]:
    return {rows_of(stage.inputs[0]) for stage in stages}


def _tables(bmodel: Bmodel, net: str) -> list[int]:
    """Bytes of the tables in a net."""
    return [weight.bytes for weight in bmodel.weights.get(net, ()) if weight.name == _TABLE]


def _positions(maker: Maker, context: int, head_dim: int, tables: list[int]) -> int:
    """Rows of the decoder's rotary table, beyond which it reads other memory.

    There is one for each row of the cache. deploy/models adds more for a family whose positions may exceed the number
    of tokens, and fills whole pages, in which the file states the table's size. A row has a half-precision number for
    each of a half of a head's dimensions.
    """
    if maker != "deploy/models" or not head_dim:
        return context
    return max(context, min((bytes // head_dim for bytes in tables), default=context))


def _takes(greedy_head: Stage, scores: BmodelTensor, rows: int) -> bool:
    """Whether greedy_head takes lm_head's output unchanged and gives one token per row, and perhaps a sum. If not, the
    host chooses."""
    given, made = greedy_head.inputs, greedy_head.outputs
    return (
        len(given) == 1 and 0 < len(made) < 3 and (given[0].shape, given[0].dtype) == (scores.shape, scores.dtype)
        and [(prod(tensor.shape), tensor.dtype) for tensor in made] == [(rows, "i32"), (rows, "f32")][: len(made)]
    )
