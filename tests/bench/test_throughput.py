"""The engine against transformers on a CPU: the same model, captions, threads and runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Bars, Table
from qwen2vl import Oracle

from sailq.worker.engine.engine import Engine
from tests.bench.captions import COUNT, LONGEST, SHORTEST, THREADS, Caption, answer, captions
from tests.bench.turns import RUNS, TURN_SECONDS, Way, runs, spread

BATCH = 8
OURS, ALONE, STATIC, ONE = "sailq, 8 slots", "sequential generate", "static batches of 8", "sailq, 1 slot"
BOUNDS = {ALONE: 4.0, STATIC: 1.3, ONE: 3.0}
"""Least tokens/s of sailq with 8 slots as multiples of each other way's: the median of all runs."""
FIRST_AND_LAST = (*range(BATCH), *range(COUNT - BATCH, COUNT))

Answers = dict[int, list[int]]
"""Tokens by the caption's number."""


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_throughput(model: Path, table: Table, bars: Bars) -> None:
    """In each run sailq with 8 slots answers all captions. The slower ways answer a part of them, so that a run takes
    two minutes; their tokens/s count."""
    ways = {OURS: Way(_engine, (model, BATCH)), ALONE: Way(_sequential, (model,)), STATIC: Way(_static, (model,)),
            ONE: Way(_engine, (model, 1))}
    found = runs(ways)
    rates = {name: [sum(map(len, run[name].made.values())) / run[name].seconds for run in found] for name in ways}
    ratios = {name: [ours / other for ours, other in zip(rates[OURS], rates[name], strict=True)] for name in BOUNDS}
    answers = {name: [pair for run in found for pair in run[name].made.items()] for name in ways}
    work, right = captions(), dict(answers[ALONE])
    assert all(len(tokens) == work[number].tokens for made in answers.values() for number, tokens in made)
    common = {name: [tokens == right[number] for number, tokens in made if number in right]
              for name, made in answers.items()}
    same = {name: f"{sum(each)} of {len(each)}" for name, each in common.items()}
    table(
        f"{COUNT} captions of {SHORTEST} to {LONGEST} tokens, a random Qwen2-VL of 260 M parameters, fp32, {THREADS} "
        f"threads, median (min–max) of {RUNS} runs, all ways of a run by turns of {TURN_SECONDS:g} s",
        ("way", "tokens/s", "sailq with 8 slots against it", "bound", "answers as sequential generate's"),
        [(name, spread(rates[name], ".1f"), spread(ratios[name]) if name in BOUNDS else "1",
          f"≥ {BOUNDS[name]}" if name in BOUNDS else "", same[name]) for name in ways],
    )
    print(f"figure: {OURS}: {spread(rates[OURS], '.1f')} tokens/s; {ALONE}'s tokens in {same[OURS]} answers")
    for name in BOUNDS:
        print(f"figure: {OURS} against {name} ({spread(rates[name], '.1f')} tokens/s): {spread(ratios[name])} ×; "
              f"{ALONE}'s tokens in {same[name]} answers")
    bars("Captions on a CPU, 260 M parameters", "tokens/s", {name: statistics.median(rates[name]) for name in ways})
    ours = [run[OURS].made for run in found]
    assert all(run == ours[0] for run in ours)
    assert all(run[ONE].made[number] == ours[0][number] for run in found for number in run[ONE].made)
    held = {name: statistics.median(ratios[name]) >= bound for name, bound in BOUNDS.items()}
    assert held == dict.fromkeys(BOUNDS, True)


def _share(count: int, run: int) -> list[int]:
    """Numbers of `count` captions whose lengths are as evenly spread as those of all, others in each run."""
    work = captions()
    by_length, step = sorted(range(COUNT), key=lambda number: work[number].tokens), COUNT // count
    return by_length[step // 2 - 1 + run :: step]


def _engine(model: Path, slots: int) -> Callable[[int], Answers]:
    engine = Engine.load(model, slots=slots, threads=THREADS, vision_cache_bytes=0)
    work = captions()
    answer(engine, work[:1])  # what is loaded or allocated once

    def run(number: int) -> Answers:
        chosen = list(range(COUNT)) if slots > 1 else _share(8, number)
        return dict(zip(chosen, answer(engine, [work[one] for one in chosen]), strict=True))

    return run


def _sequential(model: Path) -> Callable[[int], Answers]:
    oracle, work = _oracle(model), captions()
    return lambda run: {one: _generate(oracle, [work[one]])[0] for one in _share(4, run)}


def _static(model: Path) -> Callable[[int], Answers]:
    """The first and the last batch of four: together they are padded as much as all four, 1.6 steps a token and row."""
    oracle, work = _oracle(model), captions()

    def run(_: int) -> Answers:
        made: Answers = {}
        for first in range(0, len(FIRST_AND_LAST), BATCH):
            batch = FIRST_AND_LAST[first : first + BATCH]
            made |= zip(batch, _generate(oracle, [work[one] for one in batch]), strict=True)
        return made

    return run


def _oracle(model: Path) -> Oracle:
    oracle = Oracle(model)
    torch.set_num_threads(THREADS)
    _generate(oracle, [min(captions(), key=lambda one: one.tokens)])  # what is loaded or allocated once
    return oracle


def _generate(oracle: Oracle, some: Sequence[Caption]) -> Answers:
    """transformers' `generate` on these together, until the longest is done; what each one asked for."""
    inputs = [oracle.inputs(one.messages, one.frames) for one in some]
    length = max(one["input_ids"].shape[1] for one in inputs)

    def padded(name: str, value: int) -> torch.Tensor:  # padding on the left, where generate expects it
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
