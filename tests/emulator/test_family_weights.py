"""INT4 weights of every family on the emulator, beside the same model with rounded weights on a CPU."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import ROOT, compile_
from families import LAYOUTS, OPTIONS, answers, random_model

from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.families.registry import FAMILIES
from sailq.worker.engine.preprocessor import PreparedPrompt

PROMPTS = 8


@pytest.mark.parametrize("family", FAMILIES)
def test_int4_gives_the_tokens_of_the_rounded_weights(family: str, tmp_path: Path) -> None:
    model, rounded = random_model(family), tmp_path / "rounded"
    for command in (
        ("round_weights", "--model_path", model, "--out", rounded, "--quantize", "w4f16"),
        ("export_onnx", "--dynamic", "--model_path", rounded, "--out", rounded / "onnx"),
    ):
        line = [sys.executable, "-m", f"deploy.models.{command[0]}", *map(str, command[1:])]
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    golden, exact = (Engine.load(directory, slots=1, threads=1) for directory in (rounded, model))
    bmodel = compile_(*LAYOUTS["ours"], "--quantize", "w4f16", model=model)
    device = Engine.load(model, "emulator", bmodel=bmodel)
    chosen = prompts(golden)
    expected, unrounded = answers(golden, chosen), answers(exact, chosen)
    found = answers(device, chosen)
    same = sum(map(list.__eq__, found, expected))
    print(f"\nfigure: int4 (w4f16) of a random {family} on the emulator: {same} of {PROMPTS} answers are those of the "
          f"rounded weights on a CPU; {sum(map(list.__eq__, found, unrounded))} are those of the exact weights")
    assert found == expected
    assert expected != unrounded  # else equal answers would say nothing of the rounding


def prompts(engine: Engine) -> list[PreparedPrompt]:
    """An image or a clip each, of random sizes and rates."""
    random = np.random.default_rng(8)
    side, made = engine.card.patch_size * engine.card.merge_size, list[PreparedPrompt]()
    for number in range(PROMPTS):
        frames, rows, columns = 1 + number % 2 * 3, *(int(one) for one in random.integers(1, 5, 2))
        array = random.integers(0, 256, (frames, rows * side, columns * side, 3), np.uint8)
        blob = hashlib.sha256(array.tobytes()).hexdigest()
        times = tuple(1.5 * index for index in range(frames)) if frames > 1 else ()
        part = FramesPart(type="image" if frames == 1 else "video", blob=blob, frames=frames, height=rows * side,
                          width=columns * side, times=times, fps=1 / 1.5 if times else None)
        message = Message(role="user", content=(part, TextPart(text=f"Question {number}?")))
        made.append(engine.prepare([message], {blob: array}, OPTIONS))
    return made
