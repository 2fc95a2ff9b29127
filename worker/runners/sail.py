"""bmodels on SAIL: the runner of a BM1684X, for sophon-demo's layout at batch 1.

SAIL kills the process, or corrupts memory, where other runtimes raise: everything is checked before a call.
The facts that this relies on are SAIL 3.10's; `runners.emulator` behaves the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...shared.errors import TooLong, Unsupported
from ..engine.model import ModelSpec
from ..engine.patches import normalise
from .base import MASKED, Bytes, Float, Int
from .checks import check_pixels, check_tokens, check_vision, require
from .inputs import causal_mask, grid_positions, past_mask
from .layout import Layout, SailNet, read_layout


class SailRunner:
    """See `base.Runner`. The cache stays on the device, and each new row is written to its place there.

    Args:
        sail: the module `sophon.sail`, or one that offers the same, such as `runners.emulator`.
        tpu: the number of the device.

    Raises:
        Unsupported: the file cannot be loaded, or its nets are not those of `spec`.
    """

    slots = 1

    def __init__(self, spec: ModelSpec, bmodel: Path, sail: Any, *, tpu: int = 0) -> None:
        self._spec, self._sail, self._dtypes = spec, sail, _Dtypes(sail)
        if not bmodel.is_file():
            raise Unsupported(f"{bmodel} is missing: compile it with deploy/models/compile.sh.")
        try:
            self._engine, self._handle = sail.EngineLLM(str(bmodel), [tpu]), sail.Handle(tpu)
        except RuntimeError as error:
            raise Unsupported(f"{bmodel} cannot be loaded: {error}") from None
        self._layout: Layout = read_layout(self._engine, spec, bmodel)
        self.hidden, self.context = spec.hidden_size, self._layout.context
        self.max_patches = self._layout.patches
        self.device = f"{getattr(sail, 'DEVICE', 'BM1684X')}, device {tpu}"
        self._length = 0
        self._prepare()

    def vision(self, pixels: Bytes, grid: tuple[int, int, int]) -> Float:
        """One call for each temporal grid, filled up to the net's size with patches that nobody sees."""
        t, h, w = grid
        check_pixels(self._spec, pixels, grid, self.max_patches)
        used, net = h * w, self._layout.vit
        positions = np.zeros((self.max_patches, 2), np.int32)
        positions[:used] = grid_positions(h, w, self._spec.merge_size)
        mask = np.zeros((1, self.max_patches, self.max_patches), np.float32)
        mask[..., used:] = MASKED
        self._write(self._vit[1], positions)
        self._write(self._vit[2], mask)
        embeds = []
        for patches in pixels.reshape(t, used, -1):
            values = np.zeros(net.inputs[0].shape, np.float32)
            values[:used] = patches if net.inputs[0].name == "pixels" else self._normalised(patches)
            self._write(self._vit[0], values)
            self._run(net, self._vit, [self._embeds])
            embeds.append(self._read(self._embeds)[: used // self._spec.merge_size**2])
        return np.concatenate(embeds)

    def prefill(self, slot: int, tokens: Int, positions: Int, vision: Float, places: Int) -> Float:
        """See `base.Runner.prefill`; runs at the nets' length."""
        layout, length = self._layout, len(tokens)
        require(slot == 0, f"there is no slot {slot}")
        require(0 < length < self.context, f"a prompt of {length} tokens does not fit")
        if length > layout.prompt:
            raise TooLong(f"The prompt has {length} tokens; this worker's limit is {layout.prompt}.")
        check_tokens(self._spec, tokens, positions)
        check_vision(self._spec, length, vision, places)
        self._length = 0
        filled = layout.prompt - length
        self._write(self._ids, np.pad(tokens, (0, filled)))
        self._write(self._positions, np.pad(positions, ((0, 0), (0, filled))))
        hidden, other = self._hiddens
        self._run(layout.embedding, [self._ids], [hidden])
        for start, rows in _runs(vision, places):
            self._write(self._sail.Tensor(hidden, list(rows.shape), start * self.hidden), rows)
        for block, (k, v) in zip(layout.blocks, self._cache_heads, strict=True):
            self._run(block, [hidden, self._positions, self._mask], [other, k, v])
            hidden, other = other, hidden
        logits = self._logits(hidden, length - 1)
        self._length = length
        return logits

    def decode(self, slots: Sequence[int], tokens: Int, positions: Int) -> Float:
        """See `base.Runner.decode`; host to device go a token, its positions and a mask."""
        require(list(slots) == [0], "there is one slot, 0")
        require(0 < self._length < self.context, "the slot is empty or full")
        check_tokens(self._spec, tokens, positions)
        require(len(tokens) == 1, "one token a slot")
        layout, length = self._layout, self._length
        mask = past_mask(1, self.context, np.zeros(1, np.int32), np.array([length], np.int32))
        self._write(self._step_ids, tokens)
        self._write(self._step_positions, positions)
        self._write(self._step_mask, mask)
        hidden, other = self._step_hiddens
        self._run(layout.embedding_cache, [self._step_ids], [hidden])
        for block, (k, v) in zip(layout.block_caches, self._cache, strict=True):
            rows = [self._row(cache, length) for cache in (k, v)]
            self._run(block, [hidden, self._step_positions, self._step_mask, k, v], [other, *rows])
            hidden, other = other, hidden
        logits = self._logits(hidden, 0)
        self._length += 1
        return logits[None]

    def release(self, slot: int) -> None:
        """See `base.Runner.release`."""
        self._length = 0

    def _prepare(self) -> None:
        """All device memory, once: what nets share, and what is the same for every prompt."""
        layout = self._layout
        self._vit = [self._new(tensor) for tensor in layout.vit.inputs]
        self._embeds = self._new(layout.vit.outputs[0])
        block, step = layout.blocks[0], layout.block_caches[0]
        self._ids, self._step_ids = self._new(layout.embedding.inputs[0]), self._new(layout.embedding_cache.inputs[0])
        self._hiddens = self._new(block.inputs[0]), self._new(block.inputs[0])
        self._step_hiddens = self._new(step.inputs[0]), self._new(step.inputs[0])
        self._positions, self._step_positions = self._new(block.inputs[1]), self._new(step.inputs[1])
        self._mask, self._step_mask = self._new(block.inputs[2]), self._new(step.inputs[2])
        self._write(self._mask, causal_mask(layout.prompt))
        self._out = self._new(layout.lm_head.outputs[0])
        self._cache = [(self._new(net.inputs[3]), self._new(net.inputs[4])) for net in layout.block_caches]
        head = list(block.outputs[1].shape)
        self._cache_heads = [[self._sail.Tensor(cache, head, 0) for cache in pair] for pair in self._cache]

    def _new(self, tensor: Any) -> Any:
        """Device memory alone, zeroed."""
        return self._sail.Tensor(self._handle, list(tensor.shape), tensor.dtype, False, True)

    def _row(self, cache: Any, row: int) -> Any:
        """A view of one row of [1, L, heads, dim]: what a step writes, and nothing is copied after it."""
        shape = list(self._layout.block_caches[0].outputs[1].shape)
        return self._sail.Tensor(cache, shape, row * self._spec.kv_heads * self._spec.head_dim)

    def _logits(self, hidden: Any, row: int) -> Float:
        """float32 [vocabulary] of one row of hidden states."""
        net = self._layout.lm_head
        last = self._sail.Tensor(hidden, list(net.inputs[0].shape), row * self.hidden)
        self._run(net, [last], [self._out])
        return self._read(self._out).reshape(-1)

    def _run(self, net: SailNet, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._engine.process(net.name, dict(enumerate(inputs)), dict(enumerate(outputs)))

    def _write(self, tensor: Any, values: npt.NDArray[Any]) -> None:
        """Values of the tensor's size, in its own dtype."""
        shape = tensor.shape()
        tensor.update_data(self._dtypes.encode(values.reshape(shape), tensor.dtype()))

    def _read(self, tensor: Any) -> Float:
        return self._dtypes.decode(tensor.asnumpy(), tensor.dtype())

    def _normalised(self, patches: Bytes) -> Float:
        return normalise(patches, self._spec.rescale, self._spec.mean, self._spec.std)


class _Dtypes:
    """Between numpy and the device: SAIL takes half precision as uint16."""

    def __init__(self, sail: Any) -> None:
        self._half, self._brain = sail.Dtype.BM_FLOAT16, sail.Dtype.BM_BFLOAT16

    def encode(self, values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
        if dtype == self._half:
            return values.astype(np.float16).view(np.uint16)
        if dtype == self._brain:  # to nearest, ties to even
            bits = values.astype(np.float32).view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.ascontiguousarray(values)

    def decode(self, values: npt.NDArray[Any], dtype: Any) -> Float:
        if dtype == self._half:
            return values.view(np.float16).astype(np.float32)
        if dtype == self._brain:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def _runs(vision: Float, places: Int) -> Iterator[tuple[int, Float]]:
    """(first place, rows) of each unbroken run of places."""
    if len(places):
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
            yield int(places[run[0]]), vision[run]
