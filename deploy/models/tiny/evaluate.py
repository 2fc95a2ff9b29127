"""Ask a trained sailq-tiny about held-out samples, through real files and transformers' own `generate`.

`python -m deploy.models.tiny.evaluate --model DIR --seed 7 --count 500` writes the samples' files, then
reads them as training did (sampled frames, resized by area, JPEG at quality 95) and prints the exact answers per
task. `tests/integration/test_accuracy.py` reads them as the service does. The weights are read as stored, float16,
and raised to float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from sailq.producer.samples import TRAINING_SEED, write_samples

from .network import MERGE, PAIR, PATCH, patches
from .pool import decode, encode, fit, read_clip


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.tiny.evaluate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=7, help="seed of the samples, below training's")
    parser.add_argument("--count", type=int, default=500, help="number of samples")
    parser.add_argument("--wrong", action="store_true", help="show every wrong answer")
    args = parser.parse_args()
    if not 0 <= args.seed < TRAINING_SEED:
        parser.error(f"--seed must be from 0 to {TRAINING_SEED - 1}: larger seeds were trained on")
    asker = Asker(args.model)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in write_samples(args.seed, args.count, folder):
            answer = asker.ask(row["messages"], folder)
            for key in (row["task"], row["lang"], "all"):
                total[key] += 1
                right[key] += answer == row["answer"]
            if args.wrong and answer != row["answer"]:
                question = row["messages"][-1]["content"][-1]["text"]
                print(json.dumps([row["task"], question, row["answer"], answer], ensure_ascii=False), flush=True)
    for key in sorted(total):
        print(f"{key:10} {right[key]:4} of {total[key]:4}  {100 * right[key] / total[key]:6.2f} %")
    print(f"{time.monotonic() - began:.0f} s")


class Asker:
    """The model behind transformers' interface, with the service's way of reading media."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def ask(self, messages: list[dict[str, Any]], folder: Path) -> str:
        """The greedy answer to the last question of `messages`, whose media lie under `folder`."""
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs: dict[str, Any] = {}
        for kind in ("image", "video"):
            found = [item for m in messages if m["role"] == "user" for item in m["content"] if item["type"] == kind]
            if not found:
                continue
            values, grids = zip(*(_read(item, folder / item[kind]) for item in found), strict=True)
            inputs["pixel_values" if kind == "image" else "pixel_values_videos"] = torch.cat(values)
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids)
            pad, *rest = text.split(f"<|{kind}_pad|>")
            for grid, after in zip(grids, rest, strict=True):
                pad += f"<|{kind}_pad|>" * (int(np.prod(grid)) // MERGE**2) + after
            text = pad
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        config = self.model.config
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=64,
                do_sample=False,
                **inputs,
            )
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def _read(item: dict[str, Any], path: Path) -> tuple[torch.Tensor, tuple[int, int, int]]:
    size = item["resized_height"], item["resized_width"]
    if item["type"] == "video":
        frames = read_clip(path, item["nframes"])
    else:
        frames = [np.asarray(cv2.imread(str(path)), np.uint8)] * PAIR
    pixels = torch.from_numpy(np.stack([decode(encode(fit(frame, size))) for frame in frames]))
    cut = patches(pixels.view(-1, PAIR, *pixels.shape[1:]))
    return cut.flatten(0, 1), (len(cut), size[0] // PATCH, size[1] // PATCH)


if __name__ == "__main__":
    main()
