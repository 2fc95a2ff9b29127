"""sailq with 4-bit weights against llama.cpp with Q4_0: the text model of a Qwen2-VL-2B, the same threads and prompts.

    .venv/bin/python -m pip install --no-binary llama-cpp-python llama-cpp-python gguf   # compiles for many minutes
    .venv/bin/python -m tests.bench.against_llama_cpp

Weights are random. llama.cpp answers one request after the other, as a program does that calls llama-cpp-python; sailq
answers them so, and in 8 slots. Both choose the highest score. llama.cpp's model is a Qwen2 of the same sizes, whose
positions have one dimension.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine
from tests.bench.captions import THREADS, Caption, answer
from tests.bench.markdown import markdown
from tests.bench.turns import RUNS, TURN_SECONDS, Way, runs, spread

SLOTS, TOKENS, PROMPT = 8, 64, 64
LEAST = {"one stream": 0.8, "8 requests": 1.5}
"""Tokens/s of sailq as multiples of llama.cpp's: the median of all runs."""
OURS, THEIRS = "sailq, w4", "llama.cpp, Q4_0"
_GB = 10
_BLOCKS = 2**19
"""Blocks of 32 random weights, repeated in each tensor from another start."""
_quiet: Any = None
"""A function of ctypes, which must outlive llama.cpp's calls of it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.against_llama_cpp", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="keep the models here for the next run; default: they are deleted")
    folder = parser.parse_args().folder
    missing = [name for name in ("llama_cpp", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} must be installed: see --help")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return _compare(folder)
    with tempfile.TemporaryDirectory(prefix="sailq-llama-") as name:
        return _compare(Path(name))


def _compare(folder: Path) -> int:
    from tests.bench.real_sizes import CONFIG

    ours, theirs = folder / "random-2b", folder / "random-2b.gguf"
    if not theirs.exists():
        _make(ours, theirs, CONFIG)
    ways = {OURS: Way(_ours, (ours,)), THEIRS: Way(_theirs, (theirs,))}
    found = runs(ways, len(LEAST) * RUNS)
    rows, held = [], []
    for first, (load, least) in enumerate(LEAST.items()):
        some = found[first :: len(LEAST)]
        rates = {name: [run[name].made / run[name].seconds for run in some] for name in ways}
        ratios = [our / their for our, their in zip(rates[OURS], rates[THEIRS], strict=True)]
        rows.append((load, spread(rates[THEIRS]), spread(rates[OURS]), spread(ratios), f"≥ {least}"))
        held.append(statistics.median(ratios) >= least)
    print(f"Prompts of {PROMPT} tokens, answers of {TOKENS}, random weights in a 2B's sizes, {THREADS} threads, median "
          f"(min–max) of {RUNS} runs, both by turns of {TURN_SECONDS:g} s:\n")
    print(markdown(("load", f"{THEIRS}, tokens/s", f"{OURS}, tokens/s", "ratio", "bound"), rows))
    return 0 if all(held) else 1


def _make(ours: Path, theirs: Path, config: dict[str, Any]) -> None:
    from tests.bench.real_sizes import export, write

    free = shutil.disk_usage(ours.parent).free / 1e9
    if free < _GB:
        sys.exit(f"{_GB} GB are needed in {ours.parent}, where {free:.0f} GB are free")
    write(ours)
    export(ours, ours / "onnx", "--quantize", "w4")
    partial = theirs.with_suffix(".partial")
    _write_gguf(partial, config)
    partial.rename(theirs)


def _write_gguf(path: Path, config: dict[str, Any]) -> None:
    """A Qwen2 with random Q4_0 weights, which has the embedding as its head, as the 2B does."""
    import gguf
    from gguf.quants import quantize

    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layers, heads, kv_heads = (config[f"num_{name}"] for name in
                               ("hidden_layers", "attention_heads", "key_value_heads"))
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    noise = np.random.default_rng(0).normal(0, 0.02, (_BLOCKS, 32)).astype(np.float32)
    blocks = quantize(noise, q4_0)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    def matrix(name: str, rows: int, columns: int) -> None:
        start = len(name) * 7919 % _BLOCKS
        data = np.resize(np.roll(blocks, start, axis=0), (rows, columns // 32 * blocks.shape[1]))
        writer.add_tensor(f"{name}.weight", data, raw_dtype=q4_0)

    def vector(name: str, length: int, value: float) -> None:
        writer.add_tensor(name, np.full(length, value, np.float32))

    matrix("token_embd", vocabulary, hidden)
    vector("output_norm.weight", hidden, 1)
    head = hidden // heads
    sizes = {"attn_q": (heads * head, hidden), "attn_k": (kv_heads * head, hidden), "attn_v": (kv_heads * head, hidden),
             "attn_output": (hidden, heads * head), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
             "ffn_down": (hidden, inner)}
    for layer in range(layers):
        for name, (rows, columns) in sizes.items():
            matrix(f"blk.{layer}.{name}", rows, columns)
            if name in ("attn_q", "attn_k", "attn_v"):
                vector(f"blk.{layer}.{name}.bias", rows, 0)
        for name in ("attn_norm", "ffn_norm"):
            vector(f"blk.{layer}.{name}.weight", hidden, 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _ours(model: Path) -> Callable[[int], int]:
    engine = Engine.load(model, slots=SLOTS, threads=THREADS, vision_cache_bytes=0)
    work = [Caption((_question(engine, number),), {}, TOKENS) for number in range(SLOTS)]
    answer(engine, work[:1])  # what is loaded or allocated once

    def run(number: int) -> int:
        return sum(map(len, answer(engine, work if number % len(LEAST) else work[:1])))

    return run


def _question(engine: Engine, number: int) -> Message:
    """One whose prompt has PROMPT tokens, or one more."""
    text = f"{number}"
    while True:
        message = Message(role="user", content=(TextPart(text=text),))
        if len(engine.prepare([message], {}, GenerationOptions()).tokens) >= PROMPT:
            return message
        text += f" {number}"


def _theirs(model: Path) -> Callable[[int], int]:
    import llama_cpp as llama

    global _quiet
    _quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loading, context = llama.llama_model_default_params(), llama.llama_context_default_params()
    context.n_ctx, context.n_threads, context.n_threads_batch = PROMPT + TOKENS, THREADS, THREADS
    loaded = llama.llama_model_load_from_file(str(model).encode(), loading)
    state = llama.llama_init_from_model(loaded, context)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
    random = np.random.default_rng(0)

    def step(tokens: list[int]) -> int:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert llama.llama_decode(state, llama.llama_batch_get_one(array, len(tokens))) == 0
        scores = llama.llama_get_logits_ith(state, -1)
        return int(np.ctypeslib.as_array(scores, shape=(vocabulary,)).argmax())

    def request() -> int:
        llama.llama_memory_clear(llama.llama_get_memory(state), True)
        token = step(random.integers(0, vocabulary, PROMPT).tolist())
        for _ in range(TOKENS - 1):
            token = step([token])
        return TOKENS

    request()  # what is loaded or allocated once
    return lambda number: sum(request() for _ in range(SLOTS if number % len(LEAST) else 1))


if __name__ == "__main__":
    sys.exit(main())
