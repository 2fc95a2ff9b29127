"""Train sailq-tiny from a seed: draw media, build the tokenizer, train the vision tower, then train the whole model.

`python -m deploy.models.tiny.train --seed 0 --out DIR` does all of it and leaves the model in DIR/model. Run
the same command again after an interruption: it goes on from the shards and the checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from . import network, vocabulary
from .batches import IGNORED, Batch, Teacher, Writer
from .pool import Entry, draw_shard

HERE = Path(__file__).parent
LOOKS = 256  # media per step of the vision stage
TALKS, PARTS = 128, 4  # conversations per step of the whole model, and the number of parts that run one after another
VISION_WEIGHT = 0.2  # weight of the vision heads' loss while the whole model trains
REPORT = 25  # steps between log lines
KEEP = 250  # steps between checkpoints

Made = TypeVar("Made")


def main() -> None:
    """Read the command line and run the stages that are not done yet."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.tiny.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the media, the weights and the questions")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards, checkpoints and the model")
    parser.add_argument("--shards", type=int, default=80, help="thousands of clips, and of images, to draw")
    parser.add_argument("--vision-steps", type=int, default=700, help="steps of the vision stage")
    parser.add_argument("--steps", type=int, default=700, help="steps of the whole model")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads and drawing processes")
    args = parser.parse_args()
    model_folder = args.out / "model"
    model_folder.mkdir(parents=True, exist_ok=True)
    if not (model_folder / "tokenizer.json").exists():
        vocabulary.build(model_folder, (HERE / "chat_template.jinja").read_text(encoding="utf-8"))
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    entries = list(media(args.seed, args.out / "pool", args.shards, args.threads))
    print(f"{len(entries)} media", flush=True)
    trainer = Trainer(args.seed, entries, args.out)
    trainer.run("vision", args.vision_steps)
    trainer.run("whole", args.steps)


def media(seed: int, folder: Path, shards: int, processes: int) -> Iterator[Entry]:
    """Draw the shards that are missing, then read them all."""
    folder.mkdir(exist_ok=True)
    jobs = [(seed, number, video, _shard(folder, number, video)) for number in range(shards) for video in (True, False)]
    missing = [job for job in jobs if not job[-1].exists()]
    if missing:
        with multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (1,)) as workers:
            for done, _ in enumerate(workers.imap_unordered(_draw, missing), 1):
                print(f"drew shard {done} of {len(missing)}", flush=True)
    for *_, path in jobs:
        yield from pickle.loads(path.read_bytes())


def _shard(folder: Path, number: int, video: bool) -> Path:
    return folder / f"{'video' if video else 'image'}-{number:04d}.pickle"


def _draw(job: tuple[int, int, bool, Path]) -> None:
    seed, number, video, path = job
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(draw_shard(seed, number, video=video)))
    part.rename(path)


class Trainer:
    """Trains the model. Holds its optimizers, and resumes from a checkpoint."""

    def __init__(self, seed: int, entries: list[Entry], out: Path) -> None:
        self.out = out
        self.seed = seed
        self.entries = entries
        self.writer = Writer(out / "model")
        self.model = network.build()
        self.judges = network.Judges(network.HIDDEN)
        self.done = {"vision": 0, "whole": 0}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.checkpoint = out / "checkpoint.pt"
        self.saved: dict[str, Any] = {}
        if self.checkpoint.exists():
            self.saved = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(self.saved["model"])
            self.judges.load_state_dict(self.saved["judges"])
            self.done = self.saved["done"]

    def run(self, stage: str, steps: int) -> None:
        """Run a stage from its current step to its last."""
        if self.done[stage] >= steps:
            return
        vision = stage == "vision"
        self._optimizers(vision)
        # Questions drawn after a restart differ from those drawn before it: the step is part of the seed.
        teacher = Teacher(self.seed * 7919 + self.done[stage] + (0 if vision else 1_000_003), self.entries, self.writer)
        make: Callable[[], Any] = (lambda: teacher.looks(LOOKS)) if vision else (lambda: teacher.batches(TALKS, PARTS))
        notes: list[Tensor] = []
        began = time.monotonic()
        for made in _ahead(make, steps - self.done[stage]):
            self._set_rate(self.done[stage] / steps)
            notes.append(self._look(*made) if vision else self._talk(made))
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.done[stage] += 1
            if self.done[stage] % REPORT == 0:
                figures = " ".join(f"{value:.3f}" for value in torch.stack(notes).mean(0).tolist())
                print(
                    f"{stage} {self.done[stage]}/{steps} {figures} {time.monotonic() - began:.0f} s",
                    flush=True,
                )
                notes = []
            if self.done[stage] % KEEP == 0 or self.done[stage] == steps:
                self._keep(stage)

    def _look(self, pixels: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = self.judges(network.see(self.model, pixels), labels, places)
        torch.autograd.backward(loss)
        return torch.cat([loss.detach()[None], right])

    def _talk(self, parts: list[Batch]) -> Tensor:
        total = sum(int((part.targets != IGNORED).sum()) for part in parts)
        note = torch.zeros(5)
        for part in parts:
            seen, extra = None, torch.zeros(())
            share = len(part.tokens) / TALKS
            with torch.autocast("cpu", torch.bfloat16):
                if part.pixels is not None:
                    seen = network.see(self.model, part.pixels)
                    extra, right = self.judges(seen, part.labels, part.places)
                    note[2:] += share * right
                    seen = seen.flatten(0, 1)
                hidden = network.read(self.model, part.tokens, part.positions, seen)
                wanted = part.targets != IGNORED
                scores = self.model.lm_head(hidden[wanted])
            loss = F.cross_entropy(scores.float(), part.targets[wanted], reduction="sum") / total
            torch.autograd.backward(loss + VISION_WEIGHT * share * extra)
            note[0] += loss.detach()
            note[1] += (scores.argmax(-1) == part.targets[wanted]).sum() / total
        return note

    def _optimizers(self, vision: bool) -> None:
        named = list(self.model.model.visual.named_parameters() if vision else self.model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name] + list(self.judges.parameters())
        self.optimizers = [
            torch.optim.Muon(
                matrices, lr=0.003 if vision else 0.002, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=0.002, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        if self.saved and self.saved["vision_stage"] == vision:
            for optimizer, state in zip(self.optimizers, self.saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["top"] = group["lr"] if "top" not in group else group["top"]

    def _set_rate(self, way: float) -> None:
        """Warm up over 3 % of the way, then follow a cosine to a hundredth."""
        factor = min(1.0, way / 0.03 + 0.01) * (0.01 + 0.99 * (1 + math.cos(math.pi * way)) / 2)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * factor

    def _keep(self, stage: str) -> None:
        state = {
            "model": self.model.state_dict(),
            "judges": self.judges.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "vision_stage": stage == "vision",
            "done": self.done,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.checkpoint)
        network.save(self.model, self.out / "model")


def _ahead(make: Callable[[], Made], count: int) -> Iterator[Made]:
    """Make batches in a thread, a few ahead of the training."""
    ready: queue.Queue[Made] = queue.Queue(maxsize=3)

    def work() -> None:
        for _ in range(count):
            ready.put(make())

    threading.Thread(target=work, daemon=True).start()
    for _ in range(count):
        yield ready.get()


if __name__ == "__main__":
    main()
