"""Guided answers of sailq-tiny against a second authority: they parse, and `jsonschema` accepts them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import prepared
from jsonschema import Draft202012Validator
from schemas import FINITE, SCHEMAS

from sailq.producer.samples import TRAINING_SEED, write_samples
from sailq.producer.samples.dataset import NFRAMES, random_medium
from sailq.producer.samples.scene import COLOURS, MOTIONS, SHAPES, Scene
from sailq.producer.samples.talk import COLOUR_ZH, LANGS, MOTION_ZH, SHAPE_ZH, Lang, about
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


@pytest.mark.long
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
    ended = sum(stopped.values())
    print(f"\nfigure: {len(outcomes)} guided answers over {len(SCHEMAS)} schemas: {ended} end with stop, "
          f"{ended - len(wrong)} of these parse and validate; of {finite} over finite schemas "
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


CLIPS, CLIP_SEED = 200, 13
TOPICS = ("shape", "colour", "motion")


def clips(folder: Path) -> list[dict[str, Any]]:
    """Questions about held-out clips, in English and Chinese, with their topic and what the clip shows."""
    assert CLIP_SEED < TRAINING_SEED
    random = np.random.default_rng([CLIP_SEED, 0])
    rows = []
    for index in range(CLIPS):
        medium = random_medium(random, (84, 84), video=True)
        medium.write(folder / f"{index}.mp4")
        lang = LANGS[index % 2]
        for topic in TOPICS:
            question, _ = about(random, lang, topic, medium.scene)
            content = [{"type": "video", "video": f"{index}.mp4", "resized_height": 84, "resized_width": 84,
                        "nframes": NFRAMES}, {"type": "text", "text": question}]
            rows.append({"messages": [{"role": "user", "content": content}], "topic": topic, "lang": lang,
                         "scene": medium.scene})
    return rows


VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS}


def words(scene: Scene, lang: Lang, topic: str) -> list[str]:
    """The names that people would choose from."""
    chinese: dict[str, dict[Any, str]] = {"shape": SHAPE_ZH, "colour": COLOUR_ZH, "motion": MOTION_ZH}
    return [chinese[topic][value] if lang == "zh" else value for value in VALUES[topic]]


def sentences(scene: Scene, lang: Lang, topic: str) -> list[str]:
    """Every answer that sailq-tiny gives by itself."""
    random = np.random.default_rng(0)
    return [about(random, lang, topic, replace(scene, **{topic: value}))[1] for value in VALUES[topic]]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("texts", [words, sentences])
def test_sailq_tiny_chooses_shape_colour_and_motion(
    tmp_path: Path, texts: Callable[[Scene, Lang, str], list[str]]
) -> None:
    rows = clips(tmp_path)
    choices = [texts(row["scene"], row["lang"], row["topic"]) for row in rows]
    asked = [(row, GenerationOptions(structured_outputs={"choice": choice}))
             for row, choice in zip(rows, choices, strict=True)]
    outcomes = answers(Engine.load(resolve("sailq-tiny"), slots=8), tmp_path, asked)
    assert all(outcome.finish_reason == "stop" for outcome in outcomes)
    right: Counter[str] = Counter()
    for outcome, row, choice in zip(outcomes, rows, choices, strict=True):
        at = choice.index(outcome.text)
        right[row["topic"]] += VALUES[row["topic"]][at] == getattr(row["scene"], row["topic"])
    shares = ", ".join(f"{topic} {right[topic] / CLIPS:.1%}" for topic in TOPICS)
    print(f"\nfigure: choice of shape, colour and motion of {CLIPS} held-out clips among {texts.__name__}: "
          f"{right.total() / len(rows):.1%} right; {shares}")
    assert right.total() >= 0.97 * len(rows)


@pytest.mark.timeout(900)
def test_sailq_tiny_fills_json_with_what_it_sees(tmp_path: Path) -> None:
    schema = {
        "type": "object", "additionalProperties": False, "required": ["shape", "colour", "motion", "moving"],
        "properties": {"shape": {"enum": list(SHAPES)}, "colour": {"enum": list(COLOURS)},
                       "motion": {"enum": list(MOTIONS)}, "moving": {"type": "boolean"}},
    }
    rows = [row for row in clips(tmp_path) if row["topic"] == "shape"]
    options = GenerationOptions(structured_outputs={"json": schema}, max_new_tokens=100)
    outcomes = answers(Engine.load(resolve("sailq-tiny"), slots=8), tmp_path, [(row, options) for row in rows])
    right = 0
    for outcome, row in zip(outcomes, rows, strict=True):
        scene: Scene = row["scene"]
        right += json.loads(outcome.text) == {
            "shape": scene.shape, "colour": scene.colour, "motion": scene.motion, "moving": scene.motion != "still",
        }
    print(f"\nfigure: JSON of shape, colour and motion of {CLIPS} held-out clips: {right / CLIPS:.1%} right in all")
    assert right >= 0.97 * CLIPS
