"""Clips and prompts that share a launch on the emulator get what each gets alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import Compile
from test_sail_runner import Meter
from tiny import BATCHED, BEGINNING, LAYOUTS, RIGHT_SIZED, answer, load

from sailq.worker.engine.engine import Engine, Generation, Start
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.runners.base import Prompt
from sailq.worker.runners.chip import Chip

SLOTS = (4, 8, 16, 32, 64)
"""With --full. Without it, only the first: each number is compiled."""
Medium = tuple[np.ndarray, tuple[int, int, int]]


def media(*grids: tuple[int, int, int]) -> list[Medium]:
    random = np.random.default_rng(2)
    return [(random.integers(0, 256, (t * h * w, 1176), np.uint8), (t, h, w)) for t, h, w in grids]


@pytest.mark.parametrize("layout", ["batched", "llm_convert --dynamic"])
def test_clips_share_launches_of_the_vit_and_are_encoded_as_alone(
    layout: str, compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(compiled(*LAYOUTS[layout])).runner
    several = media((2, 4, 4), (1, 2, 2), (3, 2, 4), (1, 6, 8))
    meter = Meter(monkeypatch)
    together = runner.vision(several)
    assert meter.runs == Counter({"vit": 3})  # 48 patches; 16 + 16 + 8 + 8; 8 + 4
    alone = [runner.vision([one])[0] for one in several]
    assert [one.shape for one in together] == [(t * h * w // 4, 1, runner.hidden) for _, (t, h, w) in several]
    assert all(map(np.array_equal, together, alone))


def test_positions_and_mask_are_written_when_the_grids_change(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(compiled(*RIGHT_SIZED)).runner
    meter = Meter(monkeypatch)

    def written(*grids: tuple[int, int, int]) -> int:
        meter.to_device.clear()
        runner.vision(media(*grids))
        return len(meter.to_device)

    assert written((3, 4, 4)) == 3  # patches, positions, mask
    assert written((3, 4, 4)) == written((1, 4, 4), (2, 4, 4)) == 1
    assert written((1, 4, 8)) == 3  # the smaller size has its own
    assert written((3, 4, 4)) == written((1, 4, 8)) == 1
    assert written((1, 6, 8)) == 3 and written((3, 4, 4)) == 3


def test_a_medium_that_is_not_finite_does_not_reach_another(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(compiled(*BATCHED)).runner
    good, bad, other = media((1, 4, 4), (1, 4, 2), (2, 4, 2))
    bad[0][:] = 255
    alone = [runner.vision([one])[0] for one in (good, other)]
    write = Chip.write

    def broken(chip: Chip, tensor: Any, values: np.ndarray) -> None:
        white = (values == 255).all(axis=-1, keepdims=True) if values.shape[-1] == 1176 else False
        write(chip, tensor, np.where(white, np.nan, values) if np.any(white) else values)

    monkeypatch.setattr(Chip, "write", broken)
    meter = Meter(monkeypatch)
    first, second, third = runner.vision([good, bad, other])
    assert np.isnan(second).all()
    assert meter.runs == Counter({"vit": 1 + 4})  # together, then each grid alone
    assert np.array_equal(first, alone[0]) and np.array_equal(third, alone[1])


@pytest.mark.parametrize("chosen", [(1, 4), (5, 9, 14), (0, 4, 9, 14)])
def test_prompts_share_a_prefill_and_are_answered_as_alone(
    chosen: tuple[int, ...], cpu: Engine, samples: list[PreparedPrompt], compiled: Compile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clips and texts, in slots that are not in order, while another slot is in the middle of its answer."""
    engine, prompts, slots = load(compiled(*BATCHED)), [samples[index] for index in chosen], (2, 0, 3, 1)
    going = [engine.start(samples[19], BEGINNING, slots[-1])] if len(chosen) < engine.slots else []
    engine.step(going) if going else None
    meter = Meter(monkeypatch)
    starts = [Start(prepared, BEGINNING, slot) for prepared, slot in zip(prompts, slots, strict=False)]
    started = engine.start_together(starts)
    assert engine.together(prompts) == len(prompts)
    assert meter.runs["block_0"] == meter.runs["embedding"] == meter.runs["lm_head"] == 1
    copies = 2 * 3 * (len(prompts) - 1) + len(prompts)  # keys and values × layers × further prompts, last hidden states
    print(f"\nfigure: {len(prompts)} prompts of {sum(len(one.tokens) for one in prompts)} tokens in one prefill of "
          f"{meter.inputs['block_0'][0].shape()[1]}: {meter.copies} copies on the device")
    assert meter.copies == copies
    generations = [one for one in started if isinstance(one, Generation)]
    finish(engine, [*going, *generations])
    assert [one.tokens for one in generations] == [answer(cpu, one, options=BEGINNING) for one in prompts]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "slots" in metafunc.fixturenames:
        metafunc.parametrize("slots", SLOTS if metafunc.config.getoption("--full") else SLOTS[:1])


def test_all_slots_are_started_together_and_answer_as_alone(
    slots: int, cpu: Engine, samples: list[PreparedPrompt], compiled: Compile
) -> None:
    """As many prompts in each prefill as share one. Then every slot is in use, and each is at its own position."""
    engine = load(compiled(*RIGHT_SIZED, "--batch", str(slots)))
    chosen = [index % len(samples) for index in range(slots)]
    prompts, started, launches = [samples[index] for index in chosen], list[Generation](), 0
    while len(started) < slots:
        waiting = prompts[len(started) :]
        some = waiting[: engine.together(waiting)]
        made = engine.start_together(
            [Start(one, BEGINNING, slot) for slot, one in enumerate(some, len(started))]
        )
        assert all(isinstance(one, Generation) for one in made)
        started += [one for one in made if isinstance(one, Generation)]
        launches += 1
    finish(engine, started)
    alone = {index: answer(cpu, samples[index], options=BEGINNING) for index in set(chosen)}
    print(f"\nfigure: {slots} slots on the emulator, started in {launches} prefills, against each prompt alone: "
          f"{sum(one.tokens == alone[index] for one, index in zip(started, chosen, strict=True))} of {slots} identical")
    assert [one.tokens for one in started] == [alone[index] for index in chosen]


def finish(engine: Engine, going: list[Generation]) -> None:
    while going := [one for one in going if one.finish_reason is None]:
        engine.step(going)


def prompt(engine: Engine, prepared: PreparedPrompt, slot: int) -> Prompt:
    vision = engine.runner.vision([(one.patches, one.grid) for one in prepared.media if one.patches is not None])
    embeds = np.concatenate([np.empty((0, 1, engine.runner.hidden), np.float32), *vision])
    return Prompt(slot, prepared.tokens, prepared.positions, embeds, prepared.places)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_prompt_that_is_not_finite_does_not_reach_another(
    bad: int, samples: list[PreparedPrompt], compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(compiled(*BATCHED))
    runner: Any = engine.runner
    broken = prompt(engine, samples[5], 3)
    broken.vision[1, 0, 7] = np.nan
    prompts = [prompt(engine, samples[4], 1), prompt(engine, samples[9], 0)]
    alone = [runner.prefill([one]).row(0).copy() for one in prompts]
    prompts.insert(bad, broken)
    meter = Meter(monkeypatch)
    logits = runner.prefill(prompts)
    rows = [logits.row(index).copy() for index in range(3)]
    assert meter.runs["block_0"] == 1 + 3 and meter.runs["lm_head"] == 1
    nothing = np.isnan(rows.pop(bad))
    assert all(map(np.array_equal, rows, alone))
    assert nothing.all()
    for keys_or_values in (cache for caches in runner._cache.layers for cache in caches):
        by_slot = np.frombuffer(keys_or_values.handle.load(keys_or_values.address, keys_or_values.nbytes()), np.float16)
        finite = np.isfinite(by_slot.reshape(engine.slots, -1)).all(axis=1)
        assert finite[[0, 1, 2]].all()
