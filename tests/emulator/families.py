"""Small random models of each family: how they are compiled, and how they are asked."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from compiling import ROOT, compile_
from last_row import compile_last_row

from deploy.models import export_onnx, random_checkpoint
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt

OPTIONS = GenerationOptions(max_new_tokens=8)
NEWER = ("qwen2_5_vl", "qwen3_vl")
"""Families that sailq-tiny is not of."""
_CONTEXT, _PATCHES, _SLOTS = 96, 64, 2
"""`_SLOTS`: of `LAST_ROW`."""
_SIZES = ("--seq_length", str(_CONTEXT), "--vision_seq_length", str(_PATCHES))
_OURS, _CONVERTED = (*_SIZES, "--prefill_lengths", "32"), (*_SIZES, "--route", "llm_convert")
LAST_ROW, HISTORY = "llm_convert --batch", "llm_convert --use_history_kv"
"""Layouts: `last_row` makes the first; with the second, a prompt is prefilled in parts of 32 tokens."""
LAYOUTS = {
    "ours": _OURS,
    "ours, 4 slots": (*_OURS, "--batch", "4"),
    "llm_convert static": _CONVERTED,
    "llm_convert --dynamic": (*_CONVERTED, "--", "--dynamic"),
    LAST_ROW: (),
    HISTORY: (*_CONVERTED, "--", "--use_history_kv", "--chunk_length", "32"),
}
CHECKED = [
    ("qwen2_vl", LAST_ROW), *((family, layout) for family in NEWER for layout in LAYOUTS if layout != HISTORY),
    ("qwen3_vl", HISTORY),
]
"""The families and layouts whose tokens are compared; `test_tokens` has those of sailq-tiny. The tests compile no
others."""


def compiled(family: str, layout: str) -> Path:
    """The bmodel of a random model."""
    model = random_model(family)
    if layout == LAST_ROW:
        return compile_last_row(model, _SLOTS, _CONTEXT, _PATCHES)
    return compile_(*LAYOUTS[layout], model=model)


@cache
def random_model(family: str) -> Path:
    """The directory of a checkpoint with its nets for a CPU, made once."""
    sources = [*(ROOT / "deploy/models").glob("*.py"), *(ROOT / "deploy/models/families").glob("*.py")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(sources))).hexdigest()[:8]
    folder = ROOT / "models/random"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{family}-{digest}"
    with (folder / f"{family}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not model.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work) / family
                random_checkpoint.write(made, family)
                assert export_onnx.main(["--dynamic", "--model_path", str(made), "--out", str(made / "onnx")]) == 0
                made.rename(model)
    return model


def prompts(engine: Engine, text: str = "") -> list[PreparedPrompt]:
    """A clip whose frames are 2 seconds apart, an image of several windows in a text, and `text` if there is one."""
    unit = engine.card.patch_size * engine.card.merge_size
    random = np.random.default_rng(5)
    clip = random.integers(0, 256, (4, 2 * unit, 3 * unit, 3), np.uint8)
    image = random.integers(0, 256, (1, 3 * unit, 5 * unit, 3), np.uint8)
    parts = [_part("video", clip, times=(0.0, 2.0, 4.0, 6.0), fps=0.5), _part("image", image)]
    frames = {part.blob: taken for part, taken in zip(parts, (clip, image), strict=True)}
    messages = [
        [Message(role="user", content=(parts[0], TextPart(text="Go.")))],
        [Message(role="user", content=(TextPart(text="See"), parts[1], TextPart(text="!")))],
    ]
    if text:
        messages.append([Message(role="user", content=(TextPart(text=text),))])
    return [engine.prepare(message, frames, OPTIONS) for message in messages]


def _part(kind: str, frames: Frames, times: tuple[float, ...] = (), fps: float | None = None) -> FramesPart:
    count, height, width, _ = frames.shape
    blob = hashlib.sha256(frames.tobytes()).hexdigest()
    return FramesPart(type=kind, blob=blob, frames=count, height=height, width=width, times=times, fps=fps)


def answers(engine: Engine, prepared: Sequence[PreparedPrompt]) -> list[list[int]]:
    """Of each prompt. As many as there are slots are answered at the same time, each a step later than the one before,
    from the last slot on."""
    waiting, going, done = list(enumerate(prepared)), {}, {}
    while waiting or going:
        free = [slot for slot in reversed(range(engine.slots)) if slot not in {one.slot for one in going.values()}]
        if waiting and free:
            number, prompt = waiting.pop(0)
            going[number] = engine.start(prompt, OPTIONS, free[0])
        engine.step([one for one in going.values() if one.finish_reason is None])
        for number, generation in list(going.items()):
            assert generation.error is None
            if generation.finish_reason is not None:
                engine.release(generation.slot)
                done[number] = going.pop(number).tokens
    return [done[number] for number in range(len(prepared))]
