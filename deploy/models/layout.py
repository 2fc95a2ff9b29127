"""The nets that a model is split into, and the names and shapes of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from sailq.worker.runners.base import MAX_POSITIONS

from . import decoder_nets as nets
from .checkpoint import Checkpoint, ExportError
from .families.registry import FAMILIES
from .modules import floats, ints

RECENT = 16
"""Rows of each slot that several slots keep together: few cost little attention, many are flushed seldom."""
_TABLE_ROWS = 32
"""A static rotary table has a multiple of as many rows: a bmodel states the size of its tables in whole pages of 4096
bytes, and a row has 128."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of static nets. The defaults are sophon-demo's.

    Attributes:
        seq_length: columns of the cache, and tokens of a prompt.
        vision_seq_length: patches of one temporal grid.
        batch: slots that are decoded together. Several share `RECENT` more columns, for their newest rows.
        prefill_lengths: shorter prompts that get an `embedding` and `block_i` of their own.
        vision_lengths: smaller grids that get a `vit` of their own.
    """

    seq_length: int = 512
    vision_seq_length: int = 1024
    batch: int = 1
    prefill_lengths: tuple[int, ...] = ()
    vision_lengths: tuple[int, ...] = ()

    def check(self, context: int, merged: int) -> None:
        """Raise ExportError unless these sizes fit a model of `context` positions that merges `merged` patches per
        token."""
        if self.batch < 1:
            raise ExportError(f"--batch is {self.batch}, and must be at least 1.")
        if not 1 < self.seq_length <= context:
            raise ExportError(f"--seq_length is {self.seq_length}; this model takes 2 to {context}.")
        for length in (self.vision_seq_length, *self.vision_lengths):
            if length < 1 or length % merged:
                raise ExportError(f"{length} patches do not make a grid: {merged} are merged into one token.")
        _check_shorter("--prefill_lengths", self.prefill_lengths, self.seq_length)
        _check_shorter("--vision_lengths", self.vision_lengths, self.vision_seq_length)


def _check_shorter(option: str, lengths: Sequence[int], longest: int) -> None:
    if len(set(lengths)) < len(lengths) or any(not 0 < length < longest for length in lengths):
        given = ",".join(map(str, lengths))
        raise ExportError(f"{option} {given}: each must be different, and between 0 and {longest}.")


class Net(NamedTuple):
    """A graph to export: example inputs by name, and the dynamic axes of each tensor (empty: it is static)."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]] = {}  # never changed


def cut(checkpoint: Checkpoint, sizes: Sizes | None) -> Iterator[Net]:
    """The nets of a model. Without `sizes` they have dynamic axes, for a CPU; with `sizes`, static shapes, for a TPU.

    For a TPU, a head that chooses tokens on the device is added. A net for a shorter length is named NAME@LENGTH.
    """
    parts = _Parts(checkpoint, sizes)
    if sizes is None:
        yield parts.vit("vit", 8)
        yield parts.cpu_embedding("embedding", 2, 5)
        for layer in range(parts.layers):
            yield parts.cpu_block(f"block_{layer}", layer)
        yield parts.lm_head(2)
        return
    batch, length = sizes.batch, sizes.seq_length
    prompts = {"": length, **{f"@{shorter}": shorter for shorter in sizes.prefill_lengths}}
    grids = {"": sizes.vision_seq_length, **{f"@{smaller}": smaller for smaller in sizes.vision_lengths}}
    static = [
        *(parts.vit(f"vit{at}", patches) for at, patches in grids.items()),
        *(parts.embedding(f"embedding{at}", 1, tokens) for at, tokens in prompts.items()),
        parts.embedding("embedding_cache", batch, 1),
    ]
    for layer in range(parts.layers):
        static += [parts.block(f"block_{layer}{at}", layer, 1, tokens) for at, tokens in prompts.items()]
        static.append(parts.block_cache(f"block_cache_{layer}", layer, batch, length))
    if batch > 1:
        static.append(parts.flush(batch))
    if parts.deepstack:
        static += [parts.add(f"add{at}", tokens) for at, tokens in prompts.items()]
    static += [parts.lm_head(batch), parts.greedy_head(batch)]
    yield from (net._replace(axes={}) for net in static)


class _Parts:
    """Makes nets that share their modules, and so their weights."""

    def __init__(self, checkpoint: Checkpoint, sizes: Sizes | None) -> None:
        model, family, self._spec = checkpoint.model, checkpoint.family, checkpoint.config.text_config
        text, own = model.model.language_model, FAMILIES[checkpoint.config.model_type]
        self.layers = len(text.layers)
        self._vit, self.deepstack = own.vit(model.model.visual, family), family.deepstack
        self._embedding = nets.Embedding(text.embed_tokens.weight)
        rows = min(self._spec.max_position_embeddings, MAX_POSITIONS)
        if sizes:
            rows = -(-sizes.seq_length * own.positions_per_token // _TABLE_ROWS) * _TABLE_ROWS
        self._rotary = nets.Rotary(text.rotary_emb, rows, family.interleaved)
        self._decoder = text.layers
        self._layers = [nets.Layer(layer, self._rotary) for layer in text.layers]
        self._lm_head = nets.LmHead(text.norm, model.lm_head.weight)

    def vit(self, name: str, patches: int) -> Net:
        inputs, axes = self._vit.inputs(patches)
        return Net(name, self._vit, inputs, self._vit.outputs, axes | {name: {0: "M"} for name in self._vit.outputs})

    def embedding(self, name: str, batch: int, length: int) -> Net:
        return Net(
            name, self._embedding, {"input_ids": ints(batch, length)}, ("hidden",)
        )

    def cpu_embedding(self, name: str, batch: int, length: int) -> Net:
        outputs = ("hidden", "cos", "sin")
        return Net(
            name, nets.CpuEmbedding(self._embedding, self._rotary),
            {"input_ids": ints(batch, length), "position_ids": ints(3, batch, length)}, outputs,
            {"position_ids": {1: "B", 2: "S"}, **{name: {0: "B", 1: "S"} for name in ("input_ids", *outputs)}},
        )

    def cpu_block(self, name: str, layer: int) -> Net:
        module, batch, length, columns = nets.CpuLayer(self._decoder[layer], self._rotary), 2, 5, 3
        past = floats(batch, module.kv_heads, columns, module.dim)
        angles = floats(batch, length, 1, module.dim)
        return Net(
            name, nets.CpuBlock(module),
            {"hidden": floats(batch, length, self._spec.hidden_size), "cos": angles, "sin": angles,
             "mask": floats(batch, 1, length, columns + length), "past_k": past, "past_v": past},
            ("hidden_out", "k", "v"),
            {"mask": {0: "B", 2: "S", 3: "T"}, **{name: {0: "B", 2: "L"} for name in ("past_k", "past_v")},
             **{name: {0: "B", 1: "S"} for name in ("hidden", "cos", "sin", "hidden_out", "k", "v")}},
        )

    def block(self, name: str, layer: int, batch: int, length: int) -> Net:
        return Net(
            name, nets.Block(self._layers[layer]),
            {"hidden": floats(batch, length, self._spec.hidden_size), "position_ids": ints(3, batch, length),
             "mask": floats(batch, 1, length, length)},
            ("hidden_out", "k", "v"),
        )

    def block_cache(self, name: str, layer: int, batch: int, columns: int) -> Net:
        module = self._layers[layer]
        recent = self._recent(module, batch) if batch > 1 else {}
        past = (batch, columns, module.kv_heads, module.dim)
        return Net(
            name, nets.BlockCache(module),
            {"hidden": floats(batch, 1, self._spec.hidden_size), "position_ids": ints(3, batch, 1),
             "mask": floats(batch, 1, 1, columns + (RECENT if recent else 0) + 1),
             "past_k": floats(*past), "past_v": floats(*past), **recent},
            ("hidden_out", "k", "v"),
        )

    def add(self, name: str, length: int) -> Net:
        hidden = floats(1, length, self._spec.hidden_size)
        return Net(name, nets.Add(), {"hidden": hidden, "features": hidden}, ("hidden_out",))

    def flush(self, batch: int) -> Net:
        rows = tuple(f"{kv}_{slot}" for kv in "kv" for slot in range(batch))
        return Net("flush", nets.Flush(batch), self._recent(self._layers[0], batch), rows)

    def _recent(self, module: nets.Layer, batch: int) -> dict[str, Tensor]:
        return {name: floats(RECENT, batch, module.kv_heads, module.dim) for name in ("recent_k", "recent_v")}

    def lm_head(self, batch: int) -> Net:
        return Net(
            "lm_head", self._lm_head, {"hidden": floats(batch, self._spec.hidden_size)},
            ("logits",), {"hidden": {0: "B"}, "logits": {0: "B"}},
        )

    def greedy_head(self, batch: int) -> Net:
        logits = floats(batch, self._spec.vocab_size)
        return Net("greedy_head", nets.GreedyHead(), {"logits": logits}, ("token", "sum"))
