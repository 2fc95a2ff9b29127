"""Oracles: transformers' own Qwen2-VL on torch, small models of all families with random weights, and prompts."""

from __future__ import annotations

import ast
import atexit
import functools
import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from release import CLOCKS
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from deploy.models import export_onnx, random_checkpoint
from sailq.shared.frames import Frames
from sailq.shared.jobs import FramesPart, GenerationOptions, Message, TextPart
from sailq.worker.engine.model import ModelSpec


@functools.cache
def random_model(family: str = "qwen2_vl", tied: bool = True, context: int = 512) -> Path:
    """`random_checkpoint_of` the family, and its nets for a CPU."""
    out = random_checkpoint_of(family, tied, context)
    export(out)
    return out


@functools.cache
def random_checkpoint_of(family: str, tied: bool = True, context: int = 512) -> Path:
    """A model directory: random weights with wide logits, grouped heads, sailq-tiny's tokenizer."""
    out = Path(tempfile.mkdtemp(prefix="sailq-random-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    random_checkpoint.write(out, family, tied=tied, seed=1, context=context)
    return out


def export(directory: Path) -> None:
    """Run the exporter's command line on a directory, in this process: the nets of a CPU worker."""
    assert export_onnx.main(["--dynamic", "--model_path", str(directory), "--out", str(directory / "onnx")]) == 0


def image_patches(image: Frames) -> tuple[np.ndarray[Any, Any], list[int]]:
    """(pixel_values, grid_thw) of one uint8 [height, width, 3], by transformers' image processor."""
    values = Qwen2VLImageProcessorPil(do_resize=False)([image], return_tensors="np")
    return values["pixel_values"], values["image_grid_thw"][0].tolist()


def video_patches(frames: Frames) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The same of a video; its processor's file imports torchvision, the `patchify` in it does not."""
    spec = importlib.util.find_spec("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "patchify")
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), spec.origin, "exec"), scope)
    images = Qwen2VLImageProcessorPil()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
    videos = ((torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std)[None]
    patches, *grid = scope["patchify"](None, videos, 14, 2, 2)
    return patches[0].numpy(), grid


class Oracle:
    """transformers' model of a directory, fp32, greedy."""

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)  # more threads only slow down matrices this small
        self.spec = ModelSpec.load(directory)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()

    def inputs(self, messages: Sequence[Message], frames: Mapping[str, Frames]) -> dict[str, torch.Tensor]:
        """What Qwen2VLProcessor would return, put together from its parts."""
        plain = [{"role": m.role, "content": [
            {"type": p.type, **({"text": p.text} if isinstance(p, TextPart) else {})} for p in m.content
        ]} for m in messages]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        pixels: dict[str, list[Any]] = {"image": [], "video": []}
        grids: dict[str, list[list[int]]] = {"image": [], "video": []}
        for part in (p for m in messages for p in m.content if isinstance(p, FramesPart)):
            array = frames[part.blob]
            values, grid = image_patches(array[0]) if part.type == "image" else video_patches(array)
            pixels[part.type].append(values)
            grids[part.type].append(grid)
            text = text.replace(f"<|{part.type}_pad|>", "<|here|>" * (int(np.prod(grid)) // 4), 1)
            text = text.replace("<|here|>", f"<|{part.type}_hold|>")
        text = text.replace("_hold|>", "_pad|>")
        tokens = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        image, video = self.model.config.image_token_id, self.model.config.video_token_id
        types = (tokens == image).int() + 2 * (tokens == video).int()
        result = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": types}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            if grids[kind]:
                result[f"pixel_values{suffix}"] = torch.from_numpy(np.concatenate(pixels[kind]))
                result[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
        return result

    @torch.no_grad()
    def greedy(self, inputs: dict[str, torch.Tensor], tokens: int, **options: Any) -> list[int]:
        """The answer's tokens, the end token included."""
        out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
        return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]


class Prompts:
    """Random conversations: text, images, videos, several media, several turns. Deterministic by seed.

    As they are, no clip has more temporal grids than rows or columns: all releases of transformers give Qwen2-VL the
    same positions. Clips of LONG and SMALL have more. The sizes are of 28 pixels for each side of a vision token.
    """

    SIZES = ((84, 84), (84, 112), (112, 84), (56, 84), (28, 84))
    SMALL = ((56, 56), (28, 56), (28, 28), (56, 84), (28, 84))
    WINDOWS = ((112, 112), (140, 168), (84, 252), (224, 112), (168, 140), (196, 56), (28, 140))
    """Windows of 112 pixels, full and not."""
    SHORT, LONG = range(1, 6), range(16, 50, 2)
    QUESTIONS = (
        "What do you see?", "How many shapes are there?", "Describe the clip in one sentence.", "什么颜色？",
        "Which way does it move?", "Read the number.", "Is there a circle?", "请描述画面。", "ok 😀",
    )

    def __init__(
        self, seed: int, lengths: Sequence[int] = SHORT, sizes: Sequence[tuple[int, int]] = SIZES, *,
        unit: int = 28, timed: bool = False,
    ) -> None:
        """`lengths`: of clips, in frames. `sizes`: (height, width) of all media, which are scaled by unit / 28.
        `timed`: four of five clips have times."""
        self._random = np.random.default_rng(seed)
        self._lengths, self._timed = lengths, timed
        self._sizes = [(height * unit // 28, width * unit // 28) for height, width in sizes]

    def conversation(self) -> tuple[list[Message], dict[str, Frames]]:
        frames: dict[str, Frames] = {}
        messages: list[Message] = []
        if self._random.random() < 0.2:
            messages.append(Message(role="system", content=(TextPart(text="Answer briefly."),)))
        for turn in range(int(self._random.choice([1, 1, 2, 3]))):
            if turn:
                messages.append(Message(role="assistant", content=(TextPart(text="A red circle."),)))
            media = [self._medium(frames) for _ in range(int(self._random.choice([0, 1, 1, 2])))]
            question = TextPart(text=str(self._random.choice(self.QUESTIONS)))
            parts = [*media, question] if self._random.random() < 0.8 else [question, *media]
            messages.append(Message(role="user", content=tuple(parts)))
        return messages, frames

    def _medium(self, frames: dict[str, Frames]) -> FramesPart:
        height, width = self._sizes[int(self._random.integers(len(self._sizes)))]
        video = bool(self._random.random() < 0.5)
        count = self._lengths[int(self._random.integers(len(self._lengths)))] if video else 1
        array = self.frames(count, height, width)
        digest = hashlib.sha256(array).hexdigest()  # like a blob's digest, which is the key of the vision cache
        frames[digest] = array
        kind = "video" if video else "image"
        part = FramesPart(type=kind, blob=digest, frames=count, height=height, width=width)
        return self._with_times(part) if video and self._timed else part

    def _with_times(self, part: FramesPart) -> FramesPart:
        """Half of them with whole seconds from one pair of frames to the next, others at any rate from 0.2 to 30 frames
        a second, regular or not."""
        clock = float(self._random.choice(CLOCKS))
        kind = self._random.choice(["none", "whole", "whole", "regular", "irregular"])
        steps = np.full(part.frames - 1, int((5 * clock) ** self._random.random()))
        if kind == "none":
            return part
        if kind == "irregular":
            steps = self._random.integers(0, steps + 1)
        fps = clock / max(1, float(np.mean(steps))) if len(steps) else None
        if kind == "whole" and fps:
            clock = float(self._random.choice([clock for clock in CLOCKS if clock % 1 == 0]))
            fps = 1 / float(self._random.choice([0.5, 1, 1.5, 2, 3, 5]))
            steps = np.full(part.frames - 1, round(clock / fps))
        times = tuple(float(number) / clock for number in np.cumsum([0, *steps]))
        return FramesPart(**part.model_dump() | {"times": times, "fps": fps})

    def frames(self, count: int, height: int, width: int) -> Frames:
        """A coloured rectangle on a plain ground, somewhere else in each frame."""
        ground, colour = self._random.integers(0, 256, (2, 3))
        result = np.empty((count, height, width, 3), np.uint8)
        result[:] = ground
        for frame in result:
            top, left = self._random.integers(0, height - 14), self._random.integers(0, width - 14)
            frame[top : top + 20, left : left + 16] = colour
        return result


def options(**fields: Any) -> GenerationOptions:
    return GenerationOptions(**{"max_new_tokens": 16, **fields})
