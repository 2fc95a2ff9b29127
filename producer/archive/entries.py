"""Makes the archive's entries of ended jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sailq.shared.errors import SailqError
from sailq.shared.frames import read_jpegs
from sailq.shared.jobs import Job, TextPart, media_parts

from ..results import EndedJob
from .pictures import thumbnail
from .store import Caption, Entry

_SIZE = ("frames", "height", "width")
_LATEST = 253_402_300_800.0
"""The year 10000, in seconds since the epoch."""


def entry_of(ended: EndedJob, clips: Mapping[str, bytes]) -> Entry:
    """What the archive keeps of an ended job.

    The metadata name the `camera`, the `source` (a file) and the `time` at which the clip was taken: seconds since the
    epoch, or text in ISO 8601 form. Without a time, it is the time of submission.

    Args:
        clips: clips by digest, among them those of the job that are still on the server.
    """
    result, job = ended.result, ended.job
    metadata = result.metadata
    sizes, picture = {}, None
    for digest in ended.clips:
        if digest in clips:
            try:
                sizes[digest], jpegs = read_jpegs(clips[digest])
            except SailqError:
                continue
            picture = picture or thumbnail(jpegs, sizes[digest][1:])
    parts = [part.model_dump() for part in media_parts(job.messages)] if job else [
        {"type": "image" if size[0] == 1 else "video", "blob": digest, **dict(zip(_SIZE, size, strict=True))}
        for digest, size in sizes.items()
    ]
    submitted = job.submitted_at if job else result.finished_at - (result.timings.end_to_end or 0)
    caption = Caption(
        id=round(1e6 * (_time(metadata.get("time")) or _time(submitted) or 0)),
        job=result.job, conversation=result.conversation, turn=result.turn, finished=result.finished_at,
        camera=_name(metadata.get("camera")), source=_name(metadata.get("source")), question=_question(job),
        text=result.text, reasoning=result.reasoning, finish_reason=result.finish_reason,
        error=None if result.error is None else result.error.model_dump(),
        model=result.model, worker=result.worker, device=result.device,
        timings=result.timings.model_dump(), usage=result.usage.model_dump(),
        tokens_per_second=result.tokens_per_second, metadata=dict(metadata),
        media=[{"times": [], "fps": None, **part} for part in parts],
    )
    return Entry(caption, picture, {digest: clips[digest] for digest in sizes})


def _question(job: Job | None) -> str:
    """The text of the last message from the user."""
    asked = [message for message in job.messages if message.role == "user"] if job else []
    parts = asked[-1].content if asked else ()
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _name(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def _time(value: Any) -> float | None:
    """Seconds since the epoch; None for what is not a time."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value < _LATEST else None
