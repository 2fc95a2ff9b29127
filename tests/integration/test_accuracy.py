"""sailq-tiny on samples it never saw: rendered to files, read by the producer, answered by the engine; as it is, with
the weights of its INT4 bmodel, with a ViT in 8 bits, and with a CPU's 4-bit nets."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from asking import prepared
from rounding import int4_tiny, int8_vision_tiny, w4_tiny

from sailq.producer.samples import TASKS, TRAINING_SEED, write_samples
from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve

pytestmark = pytest.mark.proof

SEED, COUNT = 7, 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples' files, and truth.jsonl."""
    assert SEED < TRAINING_SEED
    folder = tmp_path_factory.mktemp("samples")
    rows = list(write_samples(SEED, COUNT, folder))
    assert truth(folder) == rows
    return folder


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> list[dict[str, str]]:
    return judged(resolve("sailq-tiny"), folder)


def truth(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]


def judged(model: Path, folder: Path) -> list[dict[str, str]]:
    """Each sample's task, language, true answer and the model's text."""
    rows = truth(folder)
    engine = Engine.load(model, slots=8)
    scheduler = Scheduler(engine)
    scheduler.start()
    try:
        requests = [ask(engine, scheduler, row, folder) for row in rows]
        texts = [request.wait(60).text for request in requests]
    finally:
        scheduler.close()
    return [{"task": row["task"], "lang": row["lang"], "answer": row["answer"], "text": text}
            for row, text in zip(rows, texts, strict=True)]


def ask(engine: Engine, scheduler: Scheduler, row: dict, folder: Path) -> Request:
    options = GenerationOptions(max_new_tokens=64)
    request = Request(prepared(engine, row, folder, options), options)
    scheduler.submit(request)
    return request


def share_right(verdicts: list[dict[str, str]]) -> float:
    return sum(verdict["text"] == verdict["answer"] for verdict in verdicts) / len(verdicts)


def figures_of(verdicts: list[dict[str, str]]) -> dict[str, float]:
    """The share of correct answers, by task and by language."""
    groups = defaultdict(list)
    for verdict in verdicts:
        groups[verdict["task"]].append(verdict)
        groups[verdict["lang"]].append(verdict)
    return {name: share_right(group) for name, group in sorted(groups.items())}


def tell(what: str, verdicts: list[dict[str, str]]) -> None:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in figures_of(verdicts).items())
    print(f"\nfigure: {what}{COUNT} held-out samples of seed {SEED}: {share_right(verdicts):.1%} exact; {shares}")


def test_at_least_97_percent_are_exact_and_93_of_each_task(verdicts: list[dict[str, str]]) -> None:
    figures = figures_of(verdicts)
    tell("", verdicts)
    wrong = [verdict for verdict in verdicts if verdict["text"] != verdict["answer"]]
    assert share_right(verdicts) >= 0.97, wrong
    assert set(TASKS) < set(figures) and all(figures[task] >= 0.93 for task in TASKS), wrong
    assert figures["en"] >= 0.93 and figures["zh"] >= 0.93, wrong


def test_the_model_gives_many_different_answers(verdicts: list[dict[str, str]]) -> None:
    """Makes sure that a constant answer, or one that depends only on the question, cannot pass the test above."""
    answers = {verdict["answer"] for verdict in verdicts if verdict["task"] == "video"}
    assert len(answers) >= 50
    most = max(sum(verdict["answer"] == answer for verdict in verdicts) for answer in answers)
    assert most / COUNT < 0.05


def test_int4_weights_cost_at_most_5_points(verdicts: list[dict[str, str]], folder: Path, tmp_path: Path) -> None:
    """tests/emulator/test_int4.py finds the answers of these weights to be those of the compiled model."""
    rounded = judged(int4_tiny(tmp_path), folder)
    tell("int4 (w4f16), rounded weights on a CPU, ", rounded)
    wrong = [verdict for verdict in rounded if verdict["text"] != verdict["answer"]]
    assert share_right(verdicts) - share_right(rounded) <= 0.05, wrong


def test_a_cpus_4_bit_nets_answer_at_least_97_percent_exactly(folder: Path, tmp_path: Path) -> None:
    found = judged(w4_tiny(tmp_path), folder)
    tell("export_onnx --quantize w4, ", found)
    wrong = [verdict for verdict in found if verdict["text"] != verdict["answer"]]
    assert share_right(found) >= 0.97, wrong


def test_8_bit_weights_of_the_vit_cost_at_most_1_point(
    verdicts: list[dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    rounded = judged(int8_vision_tiny(tmp_path), folder)
    tell("ViT in 8 bits (w8f16, a scale for each row), rounded weights on a CPU, ", rounded)
    wrong = [verdict for verdict in rounded if verdict["text"] != verdict["answer"]]
    assert share_right(verdicts) - share_right(rounded) <= 0.01, wrong
