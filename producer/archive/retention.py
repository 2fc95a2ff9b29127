"""Deletes what an archive need not keep any longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .store import Archive, Caption

_STEP = 100
"""Captions that are deleted in one transaction, so that new ones do not wait."""
_PAGES = 2_000


@dataclass(frozen=True)
class Retention:
    """What an archive keeps.

    Attributes:
        seconds: age at which a caption is deleted; None: never.
        bytes: most bytes of the file's contents; None: no limit. Beyond it, the frames of the oldest clips are deleted,
            and when there are no more frames, the oldest captions with their thumbnails.
    """

    seconds: float | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, days: float | None, gib: float) -> Retention:
        return cls(None if days is None else 86_400 * days, round(2**30 * gib))


def trim(archive: Archive, retention: Retention, now: float) -> int:
    """Deletes a part of what is beyond the limits, the oldest first. Returns the number of captions from which it has
    deleted something: 0 if nothing is beyond the limits. Raises SailqError.

    `now`: seconds since the epoch.
    """
    expired = [] if retention.seconds is None else archive.oldest(_STEP, now - retention.seconds)
    if expired:
        _delete(archive, expired)
        return len(expired)
    if retention.bytes is None or archive.bytes <= retention.bytes:
        return 0
    if not (shown := archive.oldest_with_clips(_STEP)):
        oldest = archive.oldest(_STEP)
        _delete(archive, oldest)
        return len(oldest)
    with archive.transaction():
        for caption in shown:
            archive.forget_clips(caption)
    archive.shrink(_PAGES)
    return len(shown)


def delete_camera(archive: Archive, camera: str) -> int:
    """Deletes all that is stored of a camera. Returns the number of captions. Raises SailqError."""
    deleted = 0
    while captions := archive.search(camera=camera, limit=_STEP):
        _delete(archive, captions)
        deleted += len(captions)
    return deleted


def _delete(archive: Archive, captions: Sequence[Caption]) -> None:
    with archive.transaction():
        archive.delete(captions)
    archive.shrink(_PAGES)
