"""Guided answers of sailq-tiny against a second authority: they parse, and `jsonschema` accepts them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import prepared
from jsonschema import Draft202012Validator
from schemas import FINITE, SCHEMAS

from sailq.producer.samples import write_samples
from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Outcome, Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve

pytestmark = pytest.mark.proof

TOKENS = 400
ROWS = 25
"""Questions to each schema, each at both temperatures."""
TEMPERATURES = (0.0, 1.0)


def answers(engine: Engine, folder: Path, asked: list[tuple[dict[str, Any], GenerationOptions]]) -> list[Outcome]:
    """Asks about samples that are files in a folder, all slots in use."""
    scheduler = Scheduler(engine)
    scheduler.start()
    try:
        requests = [Request(prepared(engine, row, folder, options), options) for row, options in asked]
        for request in requests:
            scheduler.submit(request)
        return [request.wait(600) for request in requests]
    finally:
        scheduler.close()


@pytest.mark.timeout(900)
def test_a_thousand_answers_fit_their_schemas(tmp_path: Path) -> None:
    rows = list(write_samples(11, ROWS, tmp_path))
    asked, names = [], []
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        for seed, row in enumerate(rows):
            for temperature in TEMPERATURES:
                names.append((name, temperature))
                asked.append((row, GenerationOptions(
                    max_new_tokens=TOKENS, temperature=temperature, seed=seed, structured_outputs={"json": schema},
                )))
    outcomes = answers(Engine.load(resolve("sailq-tiny"), slots=8), tmp_path, asked)
    ends = Counter[tuple[bool, float, str]]()
    wrong = []
    for (name, temperature), outcome in zip(names, outcomes, strict=True):
        ends[name in FINITE, temperature, outcome.finish_reason] += 1
        if outcome.finish_reason == "stop" and (why := misfit(SCHEMAS[name], outcome.text)):
            wrong.append((name, outcome.text, why))
        assert outcome.finish_reason in {"stop", "length"}, (name, outcome)
    stopped = {finite: sum(n for (one, _, reason), n in ends.items() if one == finite and reason == "stop")
               for finite in (True, False)}
    finite = len(FINITE) * ROWS * len(TEMPERATURES)
    print(f"\nfigure: {len(outcomes)} guided answers over {len(SCHEMAS)} schemas: {sum(stopped.values())} end with stop, "
          f"{sum(stopped.values()) - len(wrong)} of these parse and validate; of {finite} over finite schemas "
          f"{stopped[True] / finite:.1%} end with stop")
    print(f"figure: different texts among them: {len({outcome.text for outcome in outcomes})}")
    assert not wrong, wrong[:5]
    assert stopped[True] >= 0.95 * finite, ends
    assert stopped[False] > 0


def misfit(schema: dict[str, Any], text: str) -> str | None:
    """Why a text is not JSON that fits the schema; None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    checker = Draft202012Validator.FORMAT_CHECKER
    errors = list(Draft202012Validator(schema, format_checker=checker).iter_errors(value))
    return str(errors[0]) if errors else None
