"""The original release as an oracle: older transformers, each in an environment of its own beside `.venv`.

Each family was trained and released with some release of transformers: Qwen2-VL with 4.45, Qwen2.5-VL with 4.49 and
Qwen3-VL with 4.57. 4.57.1 is the last release before 5, which changed the positions of the first two. An environment is
made when first asked for (150 MB, no second torch: it shares that of `.venv`) and kept.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sailq.shared.frames import Frames
from sailq.shared.jobs import Message

ROOT = Path(__file__).parents[1]
LAST = "4.57.1"
RELEASES = {"qwen2_vl": ("4.45.1", LAST), "qwen2_5_vl": ("4.49.0", LAST), "qwen3_vl": (LAST,)}
"""By family: the release that introduced it, and the last one before 5. sophon-demo pins the first of Qwen2-VL's."""
PACKAGES = {
    "4.45.1": ["transformers==4.45.1"], "4.49.0": ["transformers==4.49.0"],
    LAST: ["transformers==4.57.1", "torchvision==0.28.0"],
}
"""torchvision is the one that belongs to torch 2.13.0. The others need none."""
CLOCKS = (30.0, 25.0, 24.0, 29.97, 12.5, 8.0)
"""Frames a second of the files that the prompts' clips are of: a frame's time is its number in the file / a clock."""


@dataclass(frozen=True)
class Answer:
    """What one prompt became.

    Attributes:
        tokens: int [L]; `positions`: int [3, L]; `delta`: as `Family.positions` has them.
        images, videos: `pixel_values` [patches, P], all media of a kind together; None unless asked for.
        answer: the greedy tokens, the end token included; empty unless asked for.
    """

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    delta: int
    images: npt.NDArray[np.float32] | None
    videos: npt.NDArray[np.float32] | None
    answer: list[int]


def environment(version: str) -> Path:
    """The Python of the environment that holds this transformers."""
    env = ROOT / f".venv-transformers-{version}"
    with open(Path(sys.prefix, f"transformers-{version}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (env / "made").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(env)], check=True)
            purelib = sysconfig.get_path("purelib", vars={"base": str(env), "platbase": str(env)})
            Path(purelib, "shared.pth").write_text(sysconfig.get_path("purelib"))
            pip = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "--quiet"]
            subprocess.run([*pip, *PACKAGES[version]], check=True)
            (env / "made").touch()
    return env / "bin/python"


def ask(
    version: str, model: Path, prompts: Sequence[Sequence[Message]], frames: Mapping[str, Frames], *,
    patches: bool = False, max_new_tokens: int = 0,
) -> list[Answer]:
    """Each prompt's answer by the model in the directory `model`. Frames that `frames` lacks are black. The times of a
    medium's frames must be those of one of `CLOCKS`."""
    request = {
        "kind": "prompts", "model": str(model), "patches": patches, "max_new_tokens": max_new_tokens, "clocks": CLOCKS,
        "prompts": [[message.model_dump(mode="json") for message in messages] for messages in prompts],
    }
    found = run(version, request, frames)
    return [
        Answer(
            found[f"{number}.tokens"], found[f"{number}.positions"], int(found[f"{number}.delta"]),
            found.get(f"{number}.pixel_values"), found.get(f"{number}.pixel_values_videos"),
            [int(token) for token in found.get(f"{number}.answer", ())],
        )
        for number in range(len(prompts))
    ]


def pixels(
    media: Sequence[tuple[str, str, Mapping[str, Any]]], frames: Mapping[str, Frames]
) -> list[tuple[npt.NDArray[np.float32], list[int]]]:
    """Each medium's `pixel_values` and grid by qwen-vl-utils and transformers 4.57.1.

    `media`: (`image`, `video` or `list`, the frames' name, options), with the frames as they were decoded.
    """
    found = run(LAST, {"kind": "pixels", "media": [list(medium) for medium in media]}, frames)
    return [(found[f"{number}.values"], found[f"{number}.grid"].tolist()) for number in range(len(media))]


def run(version: str, request: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """What `release_program.py` answers to a request, by name."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "request.npz"), Path(folder, "answers.npz")
        np.savez(asked, request=np.array(json.dumps(request)), **arrays)
        program = [environment(version), ROOT / "tests/release_program.py", asked, told]
        done = subprocess.run(list(map(str, program)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(told) as answers:
            return {name: answers[name] for name in answers.files}
