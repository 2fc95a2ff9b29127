"""Small random models of the newer families in fp16: every layout gives the CPU engine's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from families import CHECKED, LAST_ROW, NEWER, OPTIONS, answers, compiled, prompts, random_model
from test_sail_runner import Meter
from test_shared_launches import finish
from tiny import identical

from sailq.worker.engine.engine import Engine, Generation, Start
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.model_files.inspection import inspect

Ask = Callable[[str], tuple[list[PreparedPrompt], list[list[int]]]]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Of a family: prompts, and the CPU engine's answers."""
    known = {}

    def of(family: str) -> tuple[list[PreparedPrompt], list[list[int]]]:
        if family not in known:
            engine = Engine.load(random_model(family), slots=1, threads=1)
            prepared = prompts(engine)
            known[family] = prepared, answers(engine, prepared)
        return known[family]

    return of


def load(family: str, layout: str) -> Engine:
    return Engine.load(random_model(family), "emulator", bmodel=compiled(family, layout))


@pytest.mark.parametrize(("family", "layout"), CHECKED)
def test_every_layout_gives_the_cpu_engines_tokens(family: str, layout: str, ask: Ask) -> None:
    """Slots begin at different steps, and are at different positions."""
    prepared, right = ask(family)
    engine = load(family, layout)
    share = identical(answers(engine, prepared), right)
    print(f"\nfigure: {family}, {layout}, {engine.slots} slots, {len(prepared)} prompts: {share:.2%} of the CPU "
          "engine's tokens")
    assert share >= 0.99
    assert right[0] != right[1] and all(len(set(tokens)) > 2 for tokens in right)


@pytest.mark.parametrize(("family", "layout"), CHECKED)
def test_a_file_shows_its_family_and_its_layout(family: str, layout: str) -> None:
    found = inspect(compiled(family, layout)).layout
    assert found is not None and found.family == family
    assert found.kind == {
        "ours": "sophon-demo", "ours, 4 slots": "batched, 4 slots", LAST_ROW: "llm_convert batched, 2 slots",
        "llm_convert --use_history_kv": "llm_convert history",
    }.get(layout, layout.replace("--", ""))


@pytest.mark.parametrize("family", NEWER)
def test_prompts_share_a_prefill_and_are_answered_as_alone(
    family: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vision features are added in one launch of `add` for each of the first layers."""
    prepared, right = ask(family)
    engine = load(family, "ours, 4 slots")
    meter = Meter(monkeypatch)
    started = engine.start_together([Start(one, OPTIONS, slot) for one, slot in zip(prepared, (3, 1), strict=True)])
    generations = [one for one in started if isinstance(one, Generation)]
    assert meter.runs["block_0"] == 1 and meter.runs["add"] == engine.runner._layout.deepstack  # type: ignore[attr-defined]
    finish(engine, generations)
    assert [one.tokens for one in generations] == right


def test_a_prompt_without_media_launches_no_add(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one with media. Its answer is that of an engine that had no other prompt."""
    (clip, _), _ = ask("qwen3_vl")
    engine, cpu = load("qwen3_vl", "ours"), Engine.load(random_model("qwen3_vl"), slots=1, threads=1)
    text = prompts(engine, text="Tell me more.")[-1]
    answers(engine, [clip])
    meter = Meter(monkeypatch)
    assert answers(engine, [text]) == answers(cpu, [text])
    assert meter.runs["block_0"] == 1 and "add" not in meter.runs


@pytest.mark.parametrize(("layout", "launches"), [("llm_convert static", 1), ("llm_convert --dynamic", 3)])
def test_a_vit_without_a_mask_takes_one_grid_at_a_time(
    layout: str, launches: int, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load("qwen3_vl", layout).runner
    random = np.random.default_rng(2)
    media = [(random.integers(0, 256, (t * h * w, 1536), np.uint8), (t, h, w)) for t, h, w in ((2, 2, 4), (1, 4, 4))]
    meter = Meter(monkeypatch)
    together = runner.vision(media)
    assert meter.runs == Counter({"vit": launches})
    alone = [runner.vision([one])[0] for one in media]
    assert [one.shape for one in together] == [(4, 4, runner.hidden)] * 2
    assert all(map(np.array_equal, together, alone))


def test_a_step_of_the_layout_with_last_rows_copies_two_rows_a_slot_and_layer(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = ask("qwen3_vl")
    engine = load("qwen3_vl", LAST_ROW)
    runner = engine.runner
    generations = [engine.start(one, OPTIONS, slot) for slot, one in enumerate(prepared)]
    engine.step(generations)
    for some in (generations, generations[1:]):
        meter = Meter(monkeypatch)
        engine.step(some)
        layers = [f"block_cache_{index}" for index in range(4)]
        each = ["embedding_cache", "lm_head", "greedy_head"] * len(some)
        assert meter.runs == Counter([*layers, *each]) and meter.copies == 2 * len(layers) * len(some)
        for layer in layers:  # the runtime would copy a cache that is in other memory
            own = runner._chip.own_inputs(layer, 0)  # type: ignore[attr-defined]
            for index in (3, 4):
                assert meter.inputs[layer][index].address == own[index].address
        monkeypatch.undo()
