"""Makes the archive's entries of ended jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailq.shared.errors import SailqError
from sailq.shared.frames import read_jpegs
from sailq.shared.jobs import Job, TextPart, media_parts

from ..results import EndedJob
from .caption import NAME_CHARACTERS, Caption, Entry
from .pictures import thumbnail
from .times import read_iso

_SIZE = ("frames", "height", "width")
_DAY = 86_400.0
"""How far a camera's clock may be ahead, in seconds."""
_LATEST = 250_000_000_000.0
"""The year 9892, in seconds since the epoch: `datetime` ends in the year 9999."""
_MOST = 2**63 - 1
"""SQLite's largest integer."""


def entry_of(ended: EndedJob, clips: Mapping[str, bytes]) -> Entry:
    """What the archive keeps of an ended job.

    The metadata name the `camera`, the `source` (a file) and the `time` at which the clip was taken: seconds since the
    epoch, or text in ISO 8601 form. Without a time, or with one in the future, it is the time of submission.

    Args:
        clips: those of the job's clips that are still on the server, by their digests.
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
    media = [part.model_dump() for part in media_parts(job.messages)] if job else [
        {"type": "image" if size[0] == 1 else "video", "blob": digest, **dict(zip(_SIZE, size, strict=True))}
        for digest, size in sizes.items()
    ]
    latest = result.finished_at + _DAY
    submitted = job.submitted_at if job else result.finished_at - (result.timings.end_to_end or 0)
    time = _time(metadata.get("time"), latest) or _time(submitted, latest) or _time(result.finished_at, _LATEST) or 0.0
    caption = Caption(
        id=round(1e6 * time), job=result.job, conversation=result.conversation, turn=min(result.turn, _MOST),
        finished=result.finished_at, camera=_name(metadata.get("camera")), source=_name(metadata.get("source")),
        question=_question(job), text=result.text, reasoning=result.reasoning, finish_reason=result.finish_reason,
        error=None if result.error is None else result.error.model_dump(),
        model=result.model, worker=result.worker, device=result.device,
        timings=result.timings.model_dump(), usage=result.usage.model_dump(),
        tokens_per_second=result.tokens_per_second, metadata=dict(metadata),
        messages=[message.model_dump() for message in job.messages] if job else [],
        media=[{"times": [], "fps": None, **part} for part in media],
    )
    return Entry(caption, picture, {digest: clips[digest] for digest in sizes})


def _question(job: Job | None) -> str:
    """The text of the last message from the user."""
    asked = [message for message in job.messages if message.role == "user"] if job else []
    parts = asked[-1].content if asked else ()
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _name(value: Any) -> str:
    """A name of a reasonable length; empty for what is not a name."""
    named = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value)[:NAME_CHARACTERS] if named else ""


def _time(value: Any, latest: float) -> float | None:
    """Seconds since the epoch; None for what is not a time, or is later than `latest`."""
    if isinstance(value, str):
        value = read_iso(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < min(latest, _LATEST) else None
