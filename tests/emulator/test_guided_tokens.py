"""Guided answers on the emulator: their form, beside free ones, and the CPU engine's tokens."""

from __future__ import annotations

import json
from typing import Any

from asking import together
from conftest import Compile
from jsonschema import Draft202012Validator
from tiny import BATCHED, load

from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Outcome

QUESTION = [Message(role="user", content=(TextPart(text="What colour do red and blue make?"),))]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["颜色", "n"],
    "properties": {"颜色": {"enum": ["红", "紫"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
}
FORMS: list[dict[str, Any] | None] = [
    {"choice": ["red", "purple"]}, {"json": SCHEMA}, None, {"regex": "[a-z]{3,5}"}, {"json": {"type": "boolean"}},
]


def ask(engine: Engine, options: list[GenerationOptions]) -> list[tuple[list[int], Outcome]]:
    return together(engine, [(engine.prepare(QUESTION, {}, one), one) for one in options])


def test_ten_guided_answers_fit_their_forms_and_are_the_cpu_engines(cpu: Engine, compiled: Compile) -> None:
    """Of these, the greedy ones: half are sampled, by scores that differ in the last bits."""
    options = [
        GenerationOptions(max_new_tokens=32, temperature=temperature, seed=seed, structured_outputs=form)
        for temperature in (0.0, 1.0) for seed, form in enumerate(FORMS)
    ] + [GenerationOptions(max_new_tokens=32, seed=seed, structured_outputs=FORMS[seed]) for seed in (0, 1)]
    engine = load(compiled(*BATCHED))
    assert not engine.card.greedy_only
    found, expected = ask(engine, options), ask(cpu, options)
    guided = 0
    for asked, (tokens, outcome), (cpu_tokens, _) in zip(options, found, expected, strict=True):
        if asked.temperature == 0:
            assert tokens == cpu_tokens
        if asked.structured_outputs is None:
            continue
        guided += 1
        assert outcome.finish_reason == "stop"
        form = asked.structured_outputs
        if form.json_schema is not None:
            Draft202012Validator(json.loads(form.json_schema)).validate(json.loads(outcome.text))
        elif form.choice is not None:
            assert outcome.text in form.choice
        else:
            assert outcome.text.isalpha() and 3 <= len(outcome.text) <= 5
    print(f"\nfigure: {guided} guided answers on the emulator: all end with stop and fit their forms")
    assert guided == 10
