"""sailq-tiny in fp16: every layout gives the CPU engine's tokens."""

from __future__ import annotations

import pytest
from conftest import Compile
from tiny import BASE, BATCHED, BEGINNING, GREEDY, LAYOUTS, RIGHT_SIZED, SMALLER, answer, identical, load

from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt


def test_99_percent_of_the_tokens_are_the_cpu_engines(
    cpu: Engine, samples: list[PreparedPrompt], compiled: Compile, full: bool
) -> None:
    chosen = samples if full else samples[:8]
    engine = load(compiled(*RIGHT_SIZED))
    share = identical([answer(engine, one) for one in chosen], [answer(cpu, one) for one in chosen])
    print(f"\nfigure: fp16 on the emulator, {len(chosen)} held-out prompts: {share:.2%} of the CPU engine's tokens")
    assert share >= 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_cpu_engines_tokens(
    layout: str, cpu: Engine, samples: list[PreparedPrompt], compiled: Compile, full: bool
) -> None:
    engine = load(compiled(*LAYOUTS[layout]))
    video, _, images, follow_up, text = samples[:5]
    assert len(video.tokens) > 32  # more than one part with history nets
    options = GREEDY if full else BEGINNING
    for prepared in (video, images, follow_up, text) if full else (video, text):
        assert answer(engine, prepared, options=options) == answer(cpu, prepared, options=options)


def test_an_lm_head_and_a_vit_of_fewer_bits_give_the_cpu_engines_tokens(
    cpu: Engine, samples: list[PreparedPrompt], compiled: Compile, full: bool
) -> None:
    for options in (SMALLER, (*BASE, "--lm_head_quantize", "w4f16")) if full else (SMALLER,):
        engine = load(compiled(*options))
        for prepared in samples[2:5]:
            assert answer(engine, prepared, options=BEGINNING) == answer(cpu, prepared, options=BEGINNING)


def test_slots_at_different_positions_answer_as_alone(
    cpu: Engine, samples: list[PreparedPrompt], compiled: Compile
) -> None:
    engine = load(compiled(*BATCHED))
    prompts = samples[:4]
    alone = [answer(cpu, one) for one in prompts]
    assert len({len(one.tokens) for one in prompts}) > 1 and len(set(map(len, alone))) > 1
    going, done, waiting = [], {}, list(enumerate(prompts))
    order = [2, 0, 3, 1]  # slots are not filled from the first
    while waiting or going:
        if waiting:  # one more per step, so that no two start together
            number, prepared = waiting.pop(0)
            going.append((number, engine.start(prepared, GREEDY, order[number])))
        engine.step([generation for _, generation in going])
        for number, generation in list(going):
            if generation.finish_reason is not None:
                engine.release(generation.slot)
                going.remove((number, generation))
                done[number] = generation.tokens
    assert [done[number] for number in range(4)] == alone
