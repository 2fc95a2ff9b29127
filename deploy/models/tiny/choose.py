"""Teach a trained sailq-tiny to choose, without changing what it says by itself.

`python -m deploy.models.tiny.choose --model DIR --pool DIR --out DIR` reads a trained model, and trains its language
model on guided answers beside the conversations of `train.py`. It uses a GPU if there is one: five minutes on an H200.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from . import network
from .batches import IGNORED, Batch, Teacher, Writer
from .choices import Choices, Chooser
from .train import REPORT, media

RATE = 6e-4
TALKS, CHOICES = 128, 128
"""Conversations and guided answers of a step."""
CHOICE_WEIGHT = 0.3
"""Weight of the guided answers' loss."""


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.tiny.choose", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--pool", type=Path, required=True, help="folder of train.py's shards; missing ones are drawn")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the media and the questions")
    parser.add_argument("--shards", type=int, default=16, help="thousands of clips, and of images")
    parser.add_argument("--steps", type=int, default=1200, help="steps of the training")
    parser.add_argument("--threads", type=int, default=2, help="drawing processes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (args.model / name).resolve() != (args.out / name).resolve():
            shutil.copy(args.model / name, args.out / name)
    entries = list(media(args.seed, args.pool, args.shards, args.threads))
    writer = Writer(args.model)
    teacher = Teacher(args.seed + 17, entries, writer)
    chooser = Chooser(args.seed + 18, teacher, writer, args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    model = network.build()
    _load(model, args.model)
    _move(model, device)
    model.model.visual.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    notes, began = [], time.monotonic()
    for step in range(1, args.steps + 1):
        with torch.device("cpu"):
            parts, choices = teacher.batches(TALKS, 4), chooser.draw(CHOICES)
        way = step / args.steps
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, way / 0.05) * (1 + math.cos(math.pi * way)) / 2
        notes.append(_learn(model, parts, choices, device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % REPORT == 0:
            figures = " ".join(f"{value:.4f}" for value in torch.stack(notes).mean(0).tolist())
            print(f"{step}/{args.steps} {figures} {time.monotonic() - began:.0f} s", flush=True)
            notes = []
    _move(model, "cpu")
    network.save(model, args.out)


def _move(model: torch.nn.Module, device: str) -> None:
    model.to(device)


def _load(model: Qwen2VLForConditionalGeneration, folder: Path) -> None:
    """Reads what `network.save` has written."""
    names = {"visual.": "model.visual.", "model.": "model.language_model."}
    saved = load_file(folder / "model.safetensors")
    weights = {next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)): value.float()
               for name, value in saved.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)


def _learn(model: Qwen2VLForConditionalGeneration, parts: list[Batch], choices: Choices, device: str) -> Tensor:
    """Adds a step's gradients. Returns the losses and the shares of right tokens, of conversations and of choices."""
    note = torch.zeros(4)
    total = sum(int((part.targets != IGNORED).sum()) for part in parts)
    for part in parts:
        hidden = _read(model, part, device)
        targets = part.targets.to(device)
        wanted = targets != IGNORED
        scores = model.lm_head(hidden[wanted])
        loss = F.cross_entropy(scores, targets[wanted], reduction="sum") / total
        torch.autograd.backward(loss)
        note[0] += loss.detach()
        note[1] += (scores.argmax(-1) == targets[wanted]).sum() / total
    hidden = _read(model, choices.batch, device)
    scores = model.lm_head(hidden[choices.rows.to(device), choices.columns.to(device)])
    scores = scores.masked_fill(~choices.allowed.to(device), -torch.inf)
    right = choices.wanted.to(device)
    loss = F.cross_entropy(scores, right)
    torch.autograd.backward(CHOICE_WEIGHT * loss)
    note[2], note[3] = loss.detach(), (scores.argmax(-1) == right).float().mean()
    return note


def _read(model: Qwen2VLForConditionalGeneration, batch: Batch, device: str) -> Tensor:
    """The hidden states of a batch. The vision tower is not trained."""
    seen = None
    if batch.pixels is not None:
        with torch.no_grad():
            seen = network.see(model, batch.pixels.to(device)).flatten(0, 1)
    return network.read(model, batch.tokens.to(device), batch.positions.to(device), seen)


if __name__ == "__main__":
    main()
