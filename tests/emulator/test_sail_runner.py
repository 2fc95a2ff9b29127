"""The compiled sailq-tiny on the emulator: the CPU engine's tokens, and refusals where SAIL would crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sailq.shared.errors import Unsupported
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.worker.catalog import resolve
from sailq.worker.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.prompt import Prompter
from sailq.worker.runners import emulator
from sailq.worker.runners.sail import SailRunner

BMODEL = Path(__file__).parents[2] / "models/BM1684X/sailq-tiny_bm1684x_f16_seq128_1dev.bmodel"
TOKENS = 6

pytestmark = [pytest.mark.tpu, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def runner() -> SailRunner:
    if not BMODEL.is_file():
        pytest.fail(f"{BMODEL} is missing: `make tpu` compiles it and runs these tests")
    return SailRunner(ModelSpec.load(resolve("sailq-tiny")), BMODEL, emulator)


def _ask(text: str, *media: tuple[str, int, int, int]) -> tuple[Message, dict[str, np.ndarray]]:
    """A question after clips of (type, frames, height, width): a bright square that moves on a dark ground."""
    frames, parts = {}, []
    for number, (kind, count, height, width) in enumerate(media):
        array = np.full((count, height, width, 3), (20, 30, 60), np.uint8)
        for index, frame in enumerate(array):
            frame[20 + 8 * index : 44 + 8 * index, 16:40] = (220, 40, 30)
        frames[f"{number:064x}"] = array
        parts.append(FramesPart(type=kind, blob=f"{number:064x}", frames=count, height=height, width=width))
    return Message(role="user", content=(*parts, TextPart(text=text))), frames


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("Hello!", []),
        ("Describe the picture.", [("image", 1, 84, 84)]),
        ("What moves, and where to?", [("video", 4, 84, 112)]),
    ],
)
def test_greedy_tokens_equal_the_cpu_engines(
    runner: SailRunner, text: str, media: list[tuple[str, int, int, int]]
) -> None:
    directory, options = resolve("sailq-tiny"), GenerationOptions(max_new_tokens=TOKENS)
    message, frames = _ask(text, *media)
    answers = []
    spec = ModelSpec.load(directory)
    for engine in (Engine.load(directory, threads=1), Engine(spec, runner, Prompter(spec))):
        generation = engine.start(engine.prepare([message], frames, options), options, 0)
        while generation.finish_reason is None:
            engine.step([generation])
        engine.release(0)
        answers.append(generation.tokens)
    assert answers[0] == answers[1] and len(answers[0]) > 1


def test_the_runner_checks_what_it_is_given(runner: SailRunner) -> None:
    one, position = np.zeros(1, np.int32), np.zeros((3, 1), np.int32)
    nothing = np.empty((0, runner.hidden), np.float32), np.empty(0, np.int32)
    for slot, tokens in ((1, one), (-1, one), (0, one + 10_000), (0, one - 1), (0, one.astype(np.int64))):
        with pytest.raises(ValueError):
            runner.prefill(slot, tokens, position, *nothing)
    with pytest.raises(ValueError, match="empty"):
        runner.decode([0], one, position)
    with pytest.raises(ValueError, match="fit"):
        runner.vision(np.zeros((400, 1176), np.uint8), (1, 20, 20))


def test_the_emulator_raises_where_sail_would_kill_the_process(
    runner: SailRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    engine, handle = emulator.EngineLLM(str(BMODEL), [0]), emulator.Handle(0)
    ids = emulator.Tensor(handle, [1, 1], emulator.Dtype.BM_INT32)
    out = emulator.Tensor(handle, engine.get_output_shape("embedding_cache", 0), emulator.Dtype.BM_FLOAT16)
    small, long = emulator.Tensor(out, [1, 1, 8], 0), emulator.Tensor(handle, [1, 2], emulator.Dtype.BM_INT32)
    for inputs, outputs in (({}, {0: out}), ({0: ids}, {}), ({0: out}, {0: out}), ({0: ids}, {0: small}),
                            ({0: long}, {0: out})):
        with pytest.raises(ValueError):
            engine.process("embedding_cache", inputs, outputs)
    for shape, offset in (([1, 1, 8], -1), ([1, 1, 8], runner.hidden - 7), ([], 0)):
        with pytest.raises(ValueError):
            emulator.Tensor(out, shape, offset)
    for arguments in ((ids, 0, 0, 1), (out, -1, 0, 1), (out, 0, 0, -1), (out, 0, 1, runner.hidden)):
        with pytest.raises(ValueError):
            emulator.Tensor(out, out.shape(), 0).sync_d2d(*arguments)
    with pytest.raises(ValueError):
        ids.update_data(np.zeros((1, 1), np.int64))
    with pytest.raises(emulator.SailEngineError, match="no net"):
        engine.process("nothing", {}, {})
    engine.process("embedding_cache", {0: ids}, {0: out})
    assert out.asnumpy().any() and capfd.readouterr().out == ""


def test_a_bmodel_that_is_not_the_models_is_refused(runner: SailRunner, tmp_path: Path) -> None:
    spec = ModelSpec.load(resolve("sailq-tiny"))
    with pytest.raises(Unsupported, match="is missing"):
        SailRunner(spec, tmp_path / "none.bmodel", emulator)
    for wrong, cause in ((replace(spec, layers=4), "lacks the net block_3"),
                         (replace(spec, hidden_size=128), "elements, not")):
        with pytest.raises(Unsupported, match=cause):
            SailRunner(wrong, BMODEL, emulator)
