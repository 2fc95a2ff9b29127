"""sailq-tiny in a box's memory. All tests here run in it. These show that a missing flush is noticed, and that a NaN
ends only its own answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import Compile
from tiny import BATCHED, BEGINNING, GREEDY, LLM_CONVERT, RIGHT_SIZED, answer, load

from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.sampling import NotFinite
from sailq.worker.runners import emulator
from sailq.worker.runners.chip import Chip, Run

NAN = np.float16(np.nan).tobytes()


@pytest.mark.parametrize(("options", "left"), [
    pytest.param(RIGHT_SIZED, "NaNs", id="batch 1, NaNs in memory"),
    pytest.param(BATCHED, "NaNs", id="batch 4, NaNs in memory"),
    pytest.param(BATCHED, "zeros", id="batch 4, zeros in memory"),
])
def test_without_the_flushes_the_tokens_are_wrong(
    options: tuple[str, ...], left: str, cpu: Engine, samples: list[PreparedPrompt], compiled: Compile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With NaNs, because the chip reads what was there before the caches were zeroed; with zeros, because the zeros are
    evicted over the rows that the chip wrote."""
    own_inputs = Chip.own_inputs

    def zeroed(chip: Chip, net: str, stage: int) -> Mapping[int, Any]:
        own = own_inputs(chip, net, stage)
        for tensor in own.values():
            tensor.handle.store(tensor.address, bytes(tensor.nbytes()))
        return own

    if left == "zeros":
        monkeypatch.setattr(Chip, "own_inputs", zeroed)
    video = samples[0]
    right = answer(cpu, video, options=BEGINNING)
    assert said(load(compiled(*options)), video) == right
    monkeypatch.setattr(emulator.Tensor, "sync_s2d", lambda tensor, size=None: None)
    assert said(load(compiled(*options)), video) != right


def said(engine: Engine, prepared: PreparedPrompt) -> list[int] | None:
    """The answer's first tokens; None if a score was NaN."""
    try:
        return answer(engine, prepared, options=BEGINNING)
    except NotFinite:
        return None


@pytest.mark.parametrize("options", [BATCHED, LLM_CONVERT], ids=["greedy_head", "lm_head chooses"])
def test_a_nan_ends_its_answer_and_its_slot_works_again(
    options: tuple[str, ...], cpu: Engine, samples: list[PreparedPrompt], compiled: Compile
) -> None:
    """Also if the chip turns the NaN into a token without an error."""
    engine, text = load(compiled(*options)), samples[4]
    going = [engine.start(text, GREEDY, slot) for slot in range(min(2, engine.slots))]
    _, values = engine.runner._cache.layers[0]  # type: ignore[attr-defined]
    # In slot 0's last row, which the mask hides and no prefill overwrites. A NaN in a key gives wrong tokens, not NaNs.
    values.handle.store(values.address + values.nbytes() // engine.slots - len(NAN), NAN)
    engine.step(going)
    assert isinstance(going[0].error, NotFinite)
    assert all(other.error is None for other in going[1:])
    for slot in range(len(going)):
        engine.release(slot)
    assert said(engine, text) == answer(cpu, text, options=BEGINNING)


def after_lm_head(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Applies `change` to the output of each lm_head before it is read."""
    run_all = Chip.run_all

    def changed(chip: Chip, runs: Sequence[Run]) -> None:
        for run in runs:
            run_all(chip, [run])
            if run.net == "lm_head":
                change(run.outputs[0])

    monkeypatch.setattr(Chip, "run_all", changed)


def test_a_broken_row_of_lm_heads_weights_is_seen(
    samples: list[PreparedPrompt], compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One score of a row is NaN. greedy_head ignores it."""
    engine = load(compiled(*BATCHED))

    def break_rows(scores: Any) -> None:
        for row in range(scores.shape()[0]):
            place = row * scores.nbytes() // scores.shape()[0]
            scores.handle.store(scores.address + place + 4 * 100, np.float32(np.nan).tobytes())

    after_lm_head(break_rows, monkeypatch)
    with pytest.raises(NotFinite):
        engine.start(samples[4], GREEDY, 0)


def test_a_token_outside_the_vocabulary_ends_its_answer(
    samples: list[PreparedPrompt], compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAIL leaves such a token if a copy fails, because it raises no error."""
    engine = load(compiled(*LLM_CONVERT))
    after_lm_head(lambda token: token.handle.store(token.address, np.int32(2**30).tobytes()), monkeypatch)
    with pytest.raises(NotFinite):
        engine.start(samples[4], GREEDY, 0)
