"""The exported nets on ONNX Runtime against transformers' modules, from the same float16 weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exporting import CONFIG, run, tensors, write
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.cache_utils import DynamicCache

from deploy.models.layout import RECENT
from sailq.worker.engine.patches import grid_positions
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.inputs import causal_mask, past_mask

LIMIT = 1e-4
MASKED = -10000.0
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Array = np.ndarray[Any, Any]


class Nets:
    """The nets of a directory; a session lives for one call, so that only one net's weights are in memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay mapped from the file

    def __call__(self, name: str, **feeds: Array) -> list[Array]:
        path = str(self._directory / f"{name}.onnx")
        session = onnxruntime.InferenceSession(path, self._options, providers=["CPUExecutionProvider"])
        results: list[Array] = session.run(None, feeds)
        return results


class Reference:
    """transformers' modules in float32."""

    def __init__(self, model: Any) -> None:
        self.model, self.text = model, model.model.language_model
        self.spec = model.config.text_config

    @torch.no_grad()
    def layer(self, index: int, hidden: Array, positions: Array) -> tuple[Array, Array, Array]:
        """hidden [B, S, H] and positions [3, B, S] -> hidden, and k and v [B, S, kv heads, dim], all causal."""
        inputs, cache = torch.from_numpy(hidden), DynamicCache()
        angles = self.text.rotary_emb(inputs, torch.from_numpy(positions))
        mask = torch.from_numpy(causal_mask([0], hidden.shape[1]))
        layer = self.text.layers[index]
        layer.self_attn.layer_idx = 0  # of the cache
        out = layer(inputs, attention_mask=mask, position_embeddings=angles, past_key_values=cache, use_cache=True)
        kv = (cache.layers[0].keys, cache.layers[0].values)
        k, v = (one.transpose(1, 2).numpy() for one in kv)
        return out.numpy(), k, v

    @torch.no_grad()
    def vision(self, pixels: Array, height: int, width: int) -> Array:
        """Pixels [N, 1176] in 0..255 of one temporal grid -> [N / 4, H]."""
        mean, std = (np.repeat(np.array(one), pixels.shape[1] // 3) for one in (MEAN, STD))
        values = torch.from_numpy(((pixels / 255.0 - mean) / std).astype(np.float32))
        out = self.model.model.visual(values, torch.tensor([[1, height, width]]))
        result: Array = out.pooler_output.numpy()
        return result


def error(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def positions_of(generator: np.random.Generator, batch: int, length: int, below: int) -> Array:
    """int32 [3, batch, length]: any positions, three of their own for each token, as after a picture."""
    return generator.integers(0, below, (3, batch, length)).astype(np.int32)


@pytest.fixture(scope="module")
def tiny() -> Reference:
    torch.set_num_threads(1)
    directory = resolve("sailq-tiny")
    return Reference(Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Nets]]:
    """sailq-tiny's static nets by batch: a context of 24, grids of 24 patches, prompts also of 8, grids of 16."""
    folders = {batch: tmp_path_factory.mktemp(f"batch-{batch}") for batch in (1, 3)}
    for batch, folder in folders.items():
        sizes = {"seq_length": 24, "prefill_lengths": 8, "vision_seq_length": 24, "vision_lengths": 16, "batch": batch}
        options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        assert run(resolve("sailq-tiny"), folder, *options) == 0
    yield {batch: Nets(folder) for batch, folder in folders.items()}
    for folder in folders.values():
        shutil.rmtree(folder)


def dynamic_errors(nets: Nets, reference: Reference, layer: int, length: int = 11) -> Iterator[float]:
    """One layer, two sequences together, prefilled in two parts and then one step: each output's error."""
    generator = np.random.default_rng(layer)
    hidden = generator.standard_normal((2, length + 1, reference.spec.hidden_size)).astype(np.float32)
    positions = positions_of(generator, 2, length + 1, 40)
    expected = reference.layer(layer, hidden, positions)
    causal = np.repeat(causal_mask([0], length), 2, axis=0)
    last = past_mask(2, length, np.arange(2, dtype=np.int32), np.full(2, length, np.int32))
    past = expected[1][:, :0], expected[2][:, :0]
    for start, end, mask in ((0, 4, causal[..., :4, :4]), (4, length, causal[..., 4:, :]), (length, length + 1, last)):
        ids = np.zeros((2, end - start), np.int32)
        _, cos, sin = nets("embedding", input_ids=ids, position_ids=positions[..., start:end])
        out = nets(f"block_{layer}", hidden=hidden[:, start:end], cos=cos, sin=sin, mask=mask,
                   past_k=past[0].swapaxes(1, 2), past_v=past[1].swapaxes(1, 2))
        yield from (error(found, whole[:, start:end]) for found, whole in zip(out, expected, strict=True))
        past = tuple(np.concatenate(pair, axis=1) for pair in zip(past, out[1:], strict=True))


def static_errors(
    nets: Nets, reference: Reference, layer: int, context: int, prompts: dict[str, int], slots: list[int],
) -> Iterator[float]:
    """One layer: each slot prefilled alone by the net of its length, then one step of all slots together.

    `prompts`: the prefill nets by suffix; `slots`: how many tokens each slot holds.
    """
    generator = np.random.default_rng(layer)
    spec, batch = reference.spec, len(slots)
    hidden = generator.standard_normal((batch, context, spec.hidden_size)).astype(np.float32)
    positions = positions_of(generator, batch, context, context)
    past = np.full((2, batch, context, spec.num_key_value_heads, spec.hidden_size // spec.num_attention_heads), 7.0,
                   np.float32)  # the contents of unused rows have no effect
    expected = [reference.layer(layer, hidden[i : i + 1], positions[:, i : i + 1]) for i in range(batch)]
    for slot, used in enumerate(slots):
        suffix = next(suffix for suffix in reversed(prompts) if used <= prompts[suffix])
        one, length = slice(slot, slot + 1), prompts[suffix]
        out = nets(f"block_{layer}{suffix}", hidden=hidden[one, :length], position_ids=positions[:, one, :length],
                   mask=causal_mask([0], length))
        yield from (error(found[:, :used], whole[:, :used]) for found, whole in zip(out, expected[slot], strict=True))
        past[0, slot, :used], past[1, slot, :used] = out[1][0, :used], out[2][0, :used]
    rows, own = np.arange(batch), np.array(slots)
    mask = past_mask(batch, context, np.arange(batch, dtype=np.int32), np.array(slots, np.int32))
    recent = {}
    if batch > 1:  # each slot's last token lies in the first of the recent rows
        newest = np.full((2, RECENT, *past[0, :, 0].shape), 7.0, np.float32)
        newest[:, 0] = past[:, rows, own - 1]
        mask = np.insert(mask, [context] * RECENT, MASKED, axis=-1)
        mask[..., context], mask[rows, 0, 0, own - 1] = 0, MASKED
        recent = {"recent_k": newest[0], "recent_v": newest[1]}
        flushed = nets("flush", **recent)
        assert len(flushed) == 2 * batch
        for index, found in enumerate(flushed):
            np.testing.assert_array_equal(found[0], newest[index // batch, :, index % batch])
    step = nets(f"block_cache_{layer}", hidden=hidden[rows, own][:, None], mask=mask, past_k=past[0], past_v=past[1],
                position_ids=positions[:, rows, own][..., None], **recent)
    assert len(step) == 3
    for slot, used in enumerate(slots):
        for found, whole in zip(step, expected[slot], strict=True):
            yield error(found[slot : slot + 1], whole[:, used : used + 1])


def test_layers_of_the_shipped_dynamic_nets(tiny: Reference) -> None:
    nets = Nets(resolve("sailq-tiny") / "onnx")
    worst = max(error for layer in range(3) for error in dynamic_errors(nets, tiny, layer))
    print(f"\nfigure: sailq-tiny's dynamic layers against transformers: max relative error {worst:.1e}")
    assert worst <= LIMIT


@pytest.mark.parametrize("slots", [[20], [5, 23, 8]], ids=["alone", "batched"])
def test_layers_of_static_nets(slots: list[int], tiny: Reference, static: dict[int, Nets]) -> None:
    nets, prompts = static[len(slots)], {"": 24, "@8": 8}
    worst = max(e for layer in range(3) for e in static_errors(nets, tiny, layer, 24, prompts, slots))
    count = f"{len(slots)} slot{'s'[: len(slots) - 1]}"
    print(f"\nfigure: sailq-tiny's static layers, {count}, against transformers: max relative error {worst:.1e}")
    assert worst <= LIMIT


@pytest.mark.parametrize(("height", "width"), [(4, 6), (4, 4), (2, 6)])
def test_vision_takes_pixels_as_they_are(height: int, width: int, tiny: Reference, static: dict[int, Nets]) -> None:
    """Dynamic, and static with patches to spare, which nobody sees."""
    used = height * width
    pixels = np.random.default_rng(used).integers(0, 256, (used, 1176)).astype(np.float32)
    positions, expected = grid_positions(height, width, 2), tiny.vision(pixels, height, width)
    dynamic = Nets(resolve("sailq-tiny") / "onnx")
    whole = dynamic("vit", pixels=pixels, pos_ids=positions, mask=np.zeros((1, used, used), np.float32))[0]
    worst = error(whole, expected)
    for name, patches in {"vit": 24, "vit@16": 16}.items():
        if used <= patches:
            more = ((0, patches - used), (0, 0))
            mask = np.zeros((1, patches, patches), np.float32)
            mask[..., used:] = MASKED
            out = static[1](name, pixels=np.pad(pixels, more), pos_ids=np.pad(positions, more), mask=mask)[0]
            worst = max(worst, error(out[: used // 4], expected))
    grid = f"{height} × {width} patches"
    print(f"\nfigure: sailq-tiny's vit, {grid}, against transformers: max relative error {worst:.1e}")
    assert worst <= LIMIT


def test_embeddings_and_logits(tiny: Reference, static: dict[int, Nets]) -> None:
    generator = np.random.default_rng(5)
    ids = generator.integers(0, 896, (3, 1)).astype(np.int32)
    with torch.no_grad():
        embedded = tiny.text.embed_tokens(torch.from_numpy(ids)).numpy()
        hidden = generator.standard_normal((3, tiny.spec.hidden_size)).astype(np.float32)
        logits = tiny.model.lm_head(tiny.text.norm(torch.from_numpy(hidden))).numpy()
    dynamic = Nets(resolve("sailq-tiny") / "onnx")
    assert np.array_equal(static[3]("embedding_cache", input_ids=ids)[0], embedded)
    positions = positions_of(generator, 3, 1, 40)
    assert np.array_equal(dynamic("embedding", input_ids=ids, position_ids=positions)[0], embedded)
    prompt = np.resize(ids[:, 0], (1, 8))
    assert np.array_equal(static[1]("embedding@8", input_ids=prompt)[0][0, :3], embedded[:, 0])
    for nets in (static[3], dynamic):
        assert error(nets("lm_head", hidden=hidden)[0], logits) <= LIMIT
    assert error(static[1]("lm_head", hidden=hidden[:1])[0], logits[:1]) <= LIMIT
    chosen = static[3]("greedy_head", logits=logits)[0]
    assert chosen.dtype == np.int32 and chosen.tolist() == logits.argmax(-1, keepdims=True).tolist()


@pytest.mark.proof
def test_one_layer_of_the_7b_size() -> None:
    """Random weights: hidden 3584, 28 heads, 4 of keys and values, intermediate 18944."""
    config = CONFIG | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
                       "num_key_value_heads": 4, "vision_config": CONFIG["vision_config"] | {"hidden_size": 3584}}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config))
    weights = {name: torch.rand(one.shape, dtype=torch.float16) for name, one in tensors(model).items()}
    for name, weight in weights.items():
        weight.sub_(0.5).mul_(0.05).add_("norm" in name)  # so that each part of the layer affects its output
    folder = Path(tempfile.mkdtemp(prefix="sailq-7b-"))
    try:
        directory = write(folder / "model", config, weights)
        del weights, model
        reference = Reference(Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval())
        sizes = ["--seq_length", "16", "--vision_seq_length", "4", "--batch", "2"]
        assert run(directory, folder / "static", *sizes) == 0
        worst = max(static_errors(Nets(folder / "static"), reference, 0, 16, {"": 16}, [9, 15]))
        shutil.rmtree(folder / "static")
        assert run(directory, folder / "dynamic", "--dynamic") == 0
        worst = max(worst, *dynamic_errors(Nets(folder / "dynamic"), reference, 0))
    finally:
        shutil.rmtree(folder)
    print(f"\nfigure: one layer of the 7B size, both forms, against transformers: max relative error {worst:.1e}")
    assert worst <= LIMIT
