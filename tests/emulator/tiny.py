"""sailq-tiny on the emulator: how it is compiled, and how it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import asking

from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.model_files.model_paths import resolve

GREEDY = GenerationOptions(max_new_tokens=64)
BEGINNING = GenerationOptions(max_new_tokens=8)
"""For tests of what is the same at each token: one takes the emulator seconds."""

BASE = ("--seq_length", "128", "--vision_seq_length", "48")
"""Enough for every held-out sample: prompts of up to 95 tokens, 48 patches, answers of up to 28 tokens."""
RIGHT_SIZED = (*BASE, "--prefill_lengths", "32,64", "--vision_lengths", "36")
BATCHED = (*RIGHT_SIZED, "--batch", "4")
SMALLER = (*BASE, "--lm_head_quantize", "w8f16", "--vision_quantize", "w8f16")
LLM_CONVERT = (*BASE, "--route", "llm_convert")
LAYOUTS = {
    "sophon-demo": BASE,
    "batched": BATCHED,
    "llm_convert static": LLM_CONVERT,
    "llm_convert --dynamic": (*LLM_CONVERT, "--", "--dynamic"),
    "llm_convert --chunk_length": (*LLM_CONVERT, "--", "--chunk_length", "32"),
    "llm_convert --do_sample": (*LLM_CONVERT, "--", "--do_sample"),
    "llm_convert --max_input_length": (*LLM_CONVERT, "--", "--max_input_length", "96"),
    "llm_convert --use_history_kv": (*LLM_CONVERT, "--", "--use_history_kv", "--chunk_length", "32"),
}
COMPILED = (
    *LAYOUTS.values(), RIGHT_SIZED, (*RIGHT_SIZED, "--quantize", "w4f16"), SMALLER,
)
"""All that the tests compile, `--full` aside."""


def load(bmodel: Path) -> Engine:
    return Engine.load(resolve("sailq-tiny"), "emulator", bmodel=bmodel)


def answer(engine: Engine, prepared: PreparedPrompt, slot: int = 0, options: GenerationOptions = GREEDY) -> list[int]:
    """See `asking.answer`; greedy unless `options` say otherwise."""
    return asking.answer(engine, prepared, slot, options)


def identical(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Share of the tokens in `b` that `a` has at the same place of the same answer."""
    same = sum(x == y for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=False))
    return same / sum(map(len, b))
