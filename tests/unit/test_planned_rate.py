"""The rate that `sailq model plan` prints, against the real scheduler on a device that takes the table's times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from qwen2vl import random_model

from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.planning.models import find
from sailq.worker.planning.plan import Sizes, rate, workload
from sailq.worker.planning.timings import HOST_SHARE
from sailq.worker.process.serve import LOOK_AHEAD
from sailq.worker.runners.base import Prompt, nothing
from sailq.worker.runners.logits import ChosenTokens, Int
from sailq.worker.runners.packing import prompts_together, smallest, vision_launches

TIMINGS, FAMILY = find("qwen2-vl-7b")
SIZES = Sizes(slots=64, context=256, prompts=(80, 208), patches=(160, 480), vision_quantize="w8f16")
"""The configuration that the plan names first for the sample clip."""
WORK = workload(FAMILY, (2, 140, 224), 5, 60)
JOBS, FILLING = 1500, 300
"""Jobs, of which the first fill the slots: they are not counted."""


class TimedRunner:
    """Answers every prompt, which is one of `WORK`, with the same tokens. `milliseconds`: what its launches took."""

    device, context, positions = "the table's times", SIZES.context, SIZES.context
    longest_prompt, max_patches, max_side = 208, None, None
    hidden, greedy_only, slots = 4, True, SIZES.slots

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self._step = TIMINGS.step(SIZES.slots, SIZES.context)
        self._prefill = {size: TIMINGS.prefill(size, SIZES.slots) for size in SIZES.prompts}
        self._vit = {size: TIMINGS.time("vit", size, quantize=SIZES.vision_quantize) for size in SIZES.patches}

    def together(self, lengths: Sequence[int]) -> int:
        return prompts_together([WORK.prompt] * len(lengths), SIZES.prompts)

    def prefill(self, prompts: Sequence[Prompt]) -> ChosenTokens:
        for launch in vision_launches([WORK.patches] * len(prompts), SIZES.patches):
            self.milliseconds += self._vit[smallest(SIZES.patches, WORK.patches * len(launch))]
        self.milliseconds += self._prefill[smallest(SIZES.prompts, WORK.prompt * len(prompts))]
        return self._tokens(len(prompts))

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> ChosenTokens:
        self.milliseconds += self._step
        return self._tokens(len(slots))

    def release(self, slot: int) -> None:
        pass

    def _tokens(self, count: int) -> ChosenTokens:
        return ChosenTokens(np.full(count, 300, np.int32))


def captions_per_hour(lengths: Iterator[int]) -> float:
    """While jobs wait, as many as a worker claims ahead."""
    spec, runner = ModelSpec.load(random_model()), TimedRunner()
    engine = Engine(spec, runner, ChatTokenizer(spec))  # type: ignore[arg-type]
    prepared = engine.prepare([Message(role="user", content=(TextPart(text="Hi"),))], {}, GenerationOptions())
    scheduler, requests = Scheduler(engine), list[Request]()
    ended = filling = 0
    began = 0.0
    while ended < JOBS - FILLING:
        while scheduler.running + scheduler.waiting < SIZES.slots + LOOK_AHEAD:
            limit = next(lengths)
            one = PreparedPrompt(**{**vars(prepared), "limit": limit})
            requests.append(Request(one, GenerationOptions(max_new_tokens=limit)))
            scheduler.submit(requests[-1])
        scheduler.step()
        ended = sum(request.outcome is not None for request in requests)
        if not filling and ended >= FILLING:
            filling, began = ended, runner.milliseconds
    return (ended - filling) / (runner.milliseconds - began) * 3.6e6 * (1 - HOST_SHARE)


@pytest.mark.parametrize("spread", [0, 20, 30, 50])
def test_the_real_scheduler_reaches_the_planned_rate(spread: int) -> None:
    """Answers of 60 tokens, or of any lengths around it. With any lengths, jobs seldom end together."""
    planned, random = rate(TIMINGS, WORK, SIZES), np.random.default_rng(0)
    lengths = random.integers(60 - spread, 61 + spread, 2 * JOBS).tolist()
    mean = statistics.mean(lengths)
    found = captions_per_hour(iter(lengths)) * mean / 60
    print(f"figure: captions an hour by the scheduler on the table's times, answers of {60 - spread} to {60 + spread} "
          f"tokens: {found:,.0f} (planned {planned.captions_per_hour:,.0f}, alone {planned.captions_alone:,.0f})")
    assert 0.97 * planned.captions_per_hour <= found <= 1.01 * planned.captions_per_hour
    assert found >= 11_000
