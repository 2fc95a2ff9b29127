"""Runs the nets of deploy/models on any CPU with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from sailq.shared.errors import Unsupported

from ..engine.model import ModelSpec
from ..engine.patches import Grid
from .base import MAX_POSITIONS, Bytes, Prompt, nothing
from .checks import check_media, check_prompts, check_step
from .inputs import causal_mask, past_mask
from .logits import Float, HostLogits, Int

MAX_CONTEXT = 8192
"""The attention scores of a prompt take heads × tokens² × 4 bytes per layer: 3 GB for a 2B model at this length."""
MAX_PATCHES = 4096
"""The same for the patches of one temporal grid: 896 × 896 pixels, 1 GB with 16 heads."""
_COLUMNS = 64
"""The cache grows by this many tokens. The nets get all of it, with unused columns masked."""
_NARROW = 512
"""A model with a smaller hidden size runs on one thread: its products end before a second thread wakes up."""
_FREED = onnxruntime.RunOptions()
"""Frees a session's arena at the end of a run."""
_FREED.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
_EXPORT = "Export them with python -m deploy.models.export_onnx --dynamic."


class OnnxRunner:
    """See `base.Runner`. Runs the nets of `<model>/onnx`. The cache is fp32. `threads` None: a number that fits the
    model's size."""

    def __init__(self, spec: ModelSpec, *, slots: int = 1, threads: int | None = None) -> None:
        if slots < 1:
            raise ValueError(f"a runner needs at least one slot, not {slots}")
        self._spec = spec
        self.slots, self.hidden = slots, spec.hidden_size
        self.context, self.max_patches = min(spec.context, MAX_CONTEXT), MAX_PATCHES
        self.positions = min(spec.context, MAX_POSITIONS)
        self.max_side = None  # the rotary table has a row for each patch of the longest side of a frame
        self.longest_prompt, self.greedy_only = self.context - 1, False
        best = 1 if spec.hidden_size < _NARROW else os.cpu_count() or 1
        load = _Loader(spec.directory / "onnx", threads or best)
        self._vit = load("vit", arena=True)
        self._embedding, self._lm_head = load("embedding"), load("lm_head")
        self._blocks = [load(f"block_{index}") for index in range(spec.layers)]
        self.device = f"CPU, {load.threads} thread{'s'[: load.threads > 1]}"
        self._check_nets()
        self._lengths = np.zeros(slots, np.int32)
        self._cache = self._new_cache(0)

    def vision(self, media: Sequence[tuple[Bytes, Grid]]) -> list[Float]:
        """See `base.Runner.vision`. One call for each temporal grid: in a shared call a CPU would compute the scores
        between grids, too, and save nothing."""
        check_media(self._spec, media, self.max_patches, self.max_side)
        return [self._encode(pixels, grid) for pixels, grid in media]

    def _encode(self, pixels: Bytes, grid: Grid) -> Float:
        t, h, w = grid
        patches, *others = self._vit.get_inputs()
        values = self._spec.family.vit_inputs([(h, w)], h * w)
        feeds = {
            net.name: value.reshape((1,) * (len(net.shape) - value.ndim) + value.shape)
            for net, value in zip(others, values, strict=True)
        }
        grids = pixels.reshape(t, h * w, -1).astype(np.float32)
        return np.concatenate([
            np.stack(self._vit.run(None, {patches.name: one, **feeds}, _FREED), axis=1) for one in grids
        ])

    def together(self, lengths: Sequence[int]) -> int:
        """See `base.Runner.together`. One: the nets run at a prompt's own length, so a shared call would save no
        padding, and a CPU would compute the scores between prompts, too."""
        return 1

    def prefill(self, prompts: Sequence[Prompt]) -> HostLogits:
        """See `base.Runner.prefill`; runs each prompt at its own length."""
        check_prompts(self._spec, self.slots, self.context, self.positions, prompts)
        ends = np.concatenate([self._prefill(prompt) for prompt in prompts])
        return HostLogits(self._lm_head.run(None, {"hidden": ends})[0])

    def _prefill(self, prompt: Prompt) -> Float:
        """Fill a prompt's slot. Returns the hidden state of its last token, [1, H]."""
        slot, length = prompt.slot, len(prompt.tokens)
        self._lengths[slot] = 0
        self._fit(length + 1)
        hidden, feeds = self._embed(prompt.tokens[None], prompt.positions[:, None])
        hidden[0, prompt.places] = prompt.vision[:, 0]
        empty = self._cache[0, 0, :1, :, :0]
        feeds |= {"mask": causal_mask([0], length), "past_k": empty, "past_v": empty}
        for index, (cache, block) in enumerate(zip(self._cache, self._blocks, strict=True), 1):
            hidden, k, v = block.run(None, {"hidden": hidden, **feeds})
            cache[0, slot, :, :length], cache[1, slot, :, :length] = k[0].swapaxes(0, 1), v[0].swapaxes(0, 1)
            if index < prompt.vision.shape[1]:
                hidden[0, prompt.places] += prompt.vision[:, index]
        self._lengths[slot] = length
        return hidden[:, -1]

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> HostLogits:
        """See `base.Runner.decode`; rows of slots that are not in `slots` are computed too, and dropped."""
        rows, lengths = check_step(
            self._spec, self._lengths, self.context, self.positions, slots, tokens, positions
        )
        self._fit(int(lengths.max()) + 1)
        batch, columns = int(rows.max()) + 1, self._cache.shape[4]
        ids, places = np.zeros((batch, 1), np.int32), np.zeros((3, batch, 1), np.int32)
        ids[rows, 0], places[:, rows, 0] = tokens, positions
        hidden, feeds = self._embed(ids, places)
        feeds |= {"mask": past_mask(batch, columns, rows, lengths)}
        meanwhile()
        for cache, block in zip(self._cache, self._blocks, strict=True):
            past = {"past_k": cache[0, :batch], "past_v": cache[1, :batch]}
            hidden, k, v = block.run(None, {"hidden": hidden, **feeds, **past})
            cache[0, rows, :, lengths], cache[1, rows, :, lengths] = k[rows, 0], v[rows, 0]
        logits = self._lm_head.run(None, {"hidden": hidden[rows, 0]})[0]
        self._lengths[rows] += 1
        return HostLogits(logits)

    def release(self, slot: int) -> None:
        """See `base.Runner.release`."""
        self._lengths[slot] = 0

    def clear(self, slot: int) -> None:
        """See `base.Runner.clear`."""
        self.release(slot)
        self._cache[:, :, slot] = 0

    def readings(self) -> None:
        """None: a machine's own monitoring covers its CPU."""

    def _embed(self, tokens: Int, positions: Int) -> tuple[Float, dict[str, Float]]:
        """The hidden states of tokens [B, S], and the angles of their positions, which each block needs."""
        hidden, cos, sin = self._embedding.run(None, {"input_ids": tokens, "position_ids": positions})
        return hidden, {"cos": cos, "sin": sin}

    def _new_cache(self, columns: int) -> npt.NDArray[np.float32]:
        """A cache [layers, key or value, slots, heads, columns, dim]: the first slots of a layer are contiguous."""
        spec = self._spec
        return np.zeros((spec.layers, 2, self.slots, spec.kv_heads, columns, spec.head_dim), np.float32)

    def _fit(self, needed: int) -> None:
        """Resize the cache to hold the longest slot and `needed` tokens, and at most twice as much."""
        used = int(self._lengths.max())
        columns = min(-(-max(needed, used) // _COLUMNS) * _COLUMNS, self.context)
        now = self._cache.shape[4]
        if now < columns or now > 2 * columns:
            cache = self._new_cache(columns)
            cache[..., :used, :] = self._cache[..., :used, :]
            self._cache = cache

    def _check_nets(self) -> None:
        """Raise Unsupported if the nets do not fit the model's configuration."""
        spec = self._spec
        inputs = {net.name: net.shape for net in self._blocks[0].get_inputs()}
        if not inputs.keys() >= {"cos", "past_k"}:
            raise Unsupported(f"The nets in {spec.directory}/onnx are for a TPU, or from an older version. {_EXPORT}")
        vocabulary = self._lm_head.get_outputs()[0].shape[-1]
        found = (inputs["past_k"][1], inputs["past_k"][3], vocabulary, self._vit.get_outputs()[0].shape[-1])
        if found != (spec.kv_heads, spec.head_dim, spec.vocab_size, spec.hidden_size):
            raise Unsupported(f"The nets in {spec.directory}/onnx do not match its config.json: {found}.")
        takes, gives = spec.family.vit_elements(1, 1)
        if (len(self._vit.get_inputs()), len(self._vit.get_outputs())) != (len(takes), len(gives)):
            raise Unsupported(f"{spec.directory}/onnx/vit.onnx is not the ViT that its config.json asks for. {_EXPORT}")


class _Loader:
    """Opens the ONNX Runtime sessions.

    Several threads are a pool that all sessions of the process share. They spin for 40 ms before they sleep. Threads of
    each session's own would sleep and wake up in every layer. ONNX Runtime makes a pool once: the first model that is
    loaded with several threads sets its size, and then no session of the process can have threads of its own.

    Attributes:
        threads: the threads that compute.
    """

    _pool: ClassVar[int] = 0

    def __init__(self, directory: Path, threads: int) -> None:
        if threads > 1 and not _Loader._pool:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
            _Loader._pool = threads
        self._directory, self.threads = directory, _Loader._pool or threads
        self._options = onnxruntime.SessionOptions()
        if _Loader._pool:
            self._options.use_per_session_threads = False
        else:
            self._options.intra_op_num_threads = self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3

    def __call__(self, name: str, *, arena: bool = False) -> Any:
        """`arena`: whether the net's tensors come from an arena of its own, which keeps memory. The ViT's of 640
        patches take 1.6 GB from the C library's heap, which then is fragmented, and 0.1 GB from an arena."""
        self._options.enable_cpu_mem_arena = arena
        path = self._directory / f"{name}.onnx"
        if not path.is_file():
            raise Unsupported(f"{path} is missing. {_EXPORT}")
        try:
            return onnxruntime.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own type for each cause
            raise Unsupported(f"{path} cannot be loaded: {error}") from None
