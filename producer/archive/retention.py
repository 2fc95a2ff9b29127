"""Deletes what an archive need not keep any longer."""

from __future__ import annotations

from dataclasses import dataclass

from .store import Archive

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
    too_old: list[int] = []
    with archive.transaction():
        oldest = archive.oldest(_STEP) if retention.seconds is not None or retention.bytes is not None else []
        if retention.seconds is not None:
            expired = [caption for caption in oldest if caption.time < now - retention.seconds]
            archive.delete(expired)
            too_old = [caption.id for caption in expired]
        if not too_old and retention.bytes is not None and archive.bytes > retention.bytes:
            too_old = archive.oldest_with_clips(_STEP)
            for caption in too_old:
                archive.forget_clips(caption)
            if not too_old:
                archive.delete(oldest)
                too_old = [caption.id for caption in oldest]
    if too_old:
        archive.shrink(_PAGES)
    return len(too_old)


def delete_camera(archive: Archive, camera: str) -> int:
    """Deletes all that is stored of a camera. Returns the number of captions. Raises SailqError."""
    deleted = 0
    while captions := archive.search(camera=camera, limit=_STEP):
        with archive.transaction():
            archive.delete(captions)
        deleted += len(captions)
        archive.shrink(_PAGES)
    return deleted
