"""Token choice against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.sampling import Sampler, repetition_penalty, softmax, warp

VOCABULARY = 997
PROMPT = np.array([3, 5, 5, 900], np.int32)


def _logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * scale).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (20, 1.0), (0, 0.9), (0, 0.05), (50, 0.7), (5000, 0.5)]
)
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_filters_equal_transformers(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    processors = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []), *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ])
    for seed in range(10):
        logits = _logits(seed)
        theirs = processors(torch.from_numpy(PROMPT)[None].long(), torch.from_numpy(logits)[None])[0]
        penalised = repetition_penalty(logits.astype(np.float64), np.unique(PROMPT), penalty)
        ours = softmax(warp(penalised, temperature, top_k, top_p))
        assert np.array_equal(ours > 0, np.isfinite(theirs.numpy()))
        np.testing.assert_allclose(ours, theirs.softmax(-1).numpy(), rtol=1e-4, atol=1e-9)


def test_filters_run_in_the_order_of_generate() -> None:
    """`generate` puts the penalty first, then temperature, top-k, top-p, as `warp` and `choose` assume."""
    from qwen2vl import Oracle, random_model

    config = GenerationConfig(do_sample=True, repetition_penalty=1.2, temperature=0.7, top_k=9, top_p=0.8)
    processors = Oracle(random_model()).model._get_logits_processor(config, input_ids_seq_length=4)
    assert [type(p) for p in processors] == [
        RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
    ]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_temperature_to_zero_equals_greedy(penalty: float) -> None:
    greedy = Sampler(GenerationOptions(repetition_penalty=penalty), PROMPT)
    samplers = [
        Sampler(GenerationOptions(temperature=t, seed=1, repetition_penalty=penalty), PROMPT)
        for t in (1e-3, 1e-6, 1e-300, 5e-324)
    ]
    for seed in range(30):
        logits = _logits(seed, scale=30)
        token = greedy.sample(logits)
        assert [sampler.sample(logits) for sampler in samplers] == [token] * len(samplers)


def test_greedy_with_a_penalty_remembers_its_own_tokens() -> None:
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0), PROMPT)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[7], logits[8] = 3.0, 2.0
    assert [sampler.sample(logits), sampler.sample(logits)] == [7, 8]


def test_a_seed_repeats_and_another_differs() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=seed), PROMPT)
        return [sampler.sample(_logits(step, scale=1)) for step in range(20)]

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)
    assert draw(None) != draw(None)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.0, 0.3, 0.2], np.float32) + np.float32(1e-30))
    sampler = Sampler(GenerationOptions(temperature=1.0, seed=0), PROMPT[:0])
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0, 0.3, 0.2], atol=0.015)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Sampler(GenerationOptions(), PROMPT).sample(np.full(9, value, np.float32))
