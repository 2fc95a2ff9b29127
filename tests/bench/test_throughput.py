"""The engine against transformers on a CPU: the same model, captions, threads and run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from captions import THREADS, Caption, answer, captions
from conftest import Bars, Table
from qwen2vl import Oracle
from sailq.worker.engine import Engine

BATCH = 8
BOUNDS = {"sequential generate": 4.0, "static batches of 8": 1.3, "sailq, 1 slot": 3.0}
"""Least tokens/s of sailq with 8 slots as multiples of each other way's."""

Answers = list[list[int]]


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_throughput(model: Path, table: Table, bars: Bars) -> None:
    work = captions()
    tokens = sum(one.tokens for one in work)
    oracle = Oracle(model)
    torch.set_num_threads(THREADS)
    answers: dict[str, Answers] = {}
    rates: dict[str, float] = {}

    def run(name: str, way: Callable[[Sequence[Caption]], Answers]) -> None:
        way(work[:1])  # what is loaded or allocated once
        began = time.monotonic()
        answers[name] = way(work)
        rates[name] = tokens / (time.monotonic() - began)
        print(f"{name}: {rates[name]:.1f} tokens/s", flush=True)
        assert [len(one) for one in answers[name]] == [one.tokens for one in work]

    run("sequential generate", lambda some: [_generate(oracle, [one])[0] for one in some])
    run("static batches of 8", lambda some: [
        tokens for first in range(0, len(some), BATCH) for tokens in _generate(oracle, some[first : first + BATCH])
    ])
    for slots in (1, BATCH):
        engine = Engine.load(model, slots=slots, threads=THREADS, vision_cache_bytes=0)
        run(f"sailq, {slots} slot{'s'[: slots > 1]}", lambda some, engine=engine: answer(engine, some))
        del engine

    ours = rates["sailq, 8 slots"]
    alone = answers["sequential generate"]
    table(
        f"{len(work)} captions of {min(one.tokens for one in work)} to {max(one.tokens for one in work)} tokens, "
        f"a random Qwen2-VL of 260 M parameters, fp32, {THREADS} threads, one run",
        ("way", "tokens/s", "sailq with 8 slots against it", "bound", "answers as sequential generate's"),
        [(name, f"{rate:.1f}", f"{ours / rate:.2f}", f"≥ {BOUNDS[name]}" if name in BOUNDS else "",
          f"{sum(a == b for a, b in zip(answers[name], alone, strict=True))} of {len(work)}")
         for name, rate in rates.items()],
    )
    bars("Captions on a CPU, 260 M parameters", "tokens/s", rates)
    assert answers["sailq, 8 slots"] == answers["sailq, 1 slot"]
    assert {name: ours / rates[name] >= bound for name, bound in BOUNDS.items()} == dict.fromkeys(BOUNDS, True)


def _generate(oracle: Oracle, some: Sequence[Caption]) -> Answers:
    """transformers' `generate` on these together, until the longest is done; what each one asked for."""
    inputs = [oracle.inputs(one.messages, one.frames) for one in some]
    length = max(one["input_ids"].shape[1] for one in inputs)

    def padded(name: str, value: int) -> torch.Tensor:  # on the left, where generate expects it
        rows = [torch.nn.functional.pad(one[name], (length - one[name].shape[1], 0), value=value) for one in inputs]
        return torch.cat(rows)

    together = {
        "input_ids": padded("input_ids", oracle.tokenizer.pad_token_id),
        "attention_mask": padded("attention_mask", 0), "mm_token_type_ids": padded("mm_token_type_ids", 0),
        **{name: torch.cat([one[name] for one in inputs]) for name in ("pixel_values_videos", "video_grid_thw")},
    }
    with torch.no_grad():
        made = oracle.model.generate(**together, max_new_tokens=max(one.tokens for one in some), do_sample=False)
    return [row[length : length + one.tokens].tolist() for row, one in zip(made, some, strict=True)]
