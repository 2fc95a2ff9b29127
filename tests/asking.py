"""A sample's files, through the producer's and the engine's host work, without a queue between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sailq.producer.messages import prepare
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import GenerationOptions, media_parts
from sailq.worker.engine import Engine, Prepared


def prepared(engine: Engine, row: dict[str, Any], folder: Path, options: GenerationOptions) -> Prepared:
    """A row of `write_samples` as the engine takes it; its media lie in `folder`."""
    asked = prepare(row["messages"], base=folder, card=engine.card)
    parts = media_parts(asked.messages)
    frames = {part.blob: decode_frames(asked.blobs[part.blob], (part.frames, part.height, part.width))
              for part in parts}
    return engine.prepare(asked.messages, frames, options)
