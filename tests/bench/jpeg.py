"""What a JPEG quality and its chroma cost: bytes, pixels, and how far sailq-tiny's logits drift.

    .venv/bin/python -m tests.bench.jpeg

One row for each choice. `shared/frames.py` has those that were taken.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from sailq.producer.samples import write_samples
from sailq.shared import frames as coding
from sailq.shared.frames import Frames, decode_frames, encode_frames
from sailq.shared.jobs import GenerationOptions, Message, media_parts
from sailq.shared.media.messages import prepare
from sailq.worker.engine.engine import Engine
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.base import Prompt
from tests.camera import camera_clip, drawn_on

CHROMA = {"4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
          "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}
QUALITIES = (85, 90, 91, 92, 95)
SAMPLES = 60

Sample = tuple[tuple[Message, ...], dict[str, Frames]]


def recoded(frames: Frames) -> Frames:
    return decode_frames(encode_frames(frames)[1], frames.shape[:3])


def samples(engine: Engine, folder: Path) -> list[Sample]:
    """Held-out samples with pictures, as they are before JPEG."""
    found: list[Sample] = []
    for row in write_samples(7, SAMPLES, folder):
        originals: dict[str, Frames] = {}

        def kept(frames: Frames, originals: dict[str, Frames] = originals) -> tuple[str, bytes]:
            digest, blob = encode_frames(frames)
            originals[digest] = frames
            return digest, blob

        asked = prepare(row["messages"], base=folder, card=engine.card, encode=kept)
        if media_parts(asked.messages):
            found.append((asked.messages, originals))
    return found


def logits(engine: Engine, sample: Sample) -> np.ndarray:
    """After the prompt's last token."""
    options = GenerationOptions(max_new_tokens=1)
    prepared = engine.prepare(*sample, options)
    media = [(one.patches, one.grid) for one in prepared.media if one.patches is not None]
    embeds = np.concatenate(engine.runner.vision(media))
    prompt = Prompt(0, prepared.tokens, prepared.positions, embeds, prepared.places)
    return engine.runner.prefill([prompt]).row(0)


def drift(engine: Engine, sample: Sample, exact: np.ndarray) -> float:
    """Largest difference of a logit after JPEG, as a share of the logits' range."""
    messages, media = sample
    coded = {name: recoded(frames) for name, frames in media.items()}
    return float(np.abs(logits(engine, (messages, coded)) - exact).max() / np.ptp(exact))


def main() -> None:
    engine = Engine.load(resolve("sailq-tiny"), slots=1, threads=1, vision_cache_bytes=0)
    clip, drawn = camera_clip(4, 420, 644), drawn_on(camera_clip(4, 420, 644))
    with tempfile.TemporaryDirectory() as folder:
        asked = samples(engine, Path(folder))
    exact = [logits(engine, sample) for sample in asked]
    print("chroma quality   4 frames of 420 x 644   encode   pixels   logits drift: mean, largest")
    for name, factor in CHROMA.items():
        for quality in QUALITIES:
            with mock.patch.multiple(coding, QUALITY=quality, SMALL_QUALITY=quality, CHROMA=factor):
                began = time.process_time()
                size = len(encode_frames(clip)[1])
                seconds = time.process_time() - began
                pixels = np.abs(recoded(drawn).astype(int) - drawn).mean() / 255
                drifts = [drift(engine, *one) for one in zip(asked, exact, strict=True)]
            print(f"{name}  {quality}   {size / 1024:8.0f} KB   {seconds * 250:6.1f} ms   {pixels:.2%}"
                  f"   {np.mean(drifts):.3%}, {max(drifts):.2%}", flush=True)


if __name__ == "__main__":
    main()
