"""Deletes what an archive need not keep any longer."""

from __future__ import annotations

from dataclasses import dataclass

from .store import Archive

_STEP = 100
"""Captions that are deleted in one transaction, so that new ones do not wait."""
_PAGES = 2_000
"""Pages that are given back to the disk at a time: 8 MB."""


@dataclass(frozen=True)
class Retention:
    """What an archive keeps.

    Attributes:
        seconds: time after its job's end at which a caption is deleted; None: never.
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
    archive.shrink(_PAGES)
    expired = [] if retention.seconds is None else archive.oldest(_STEP, now - retention.seconds)
    if expired:
        archive.delete(expired)
        return len(expired)
    if retention.bytes is None or archive.bytes <= retention.bytes:
        return 0
    if shown := archive.oldest_with_clips(_STEP):
        archive.forget_clips(shown)
        return len(shown)
    oldest = archive.oldest(_STEP)
    archive.delete(oldest)
    return len(oldest)


def delete_camera(archive: Archive, camera: str) -> int:
    """Deletes all that is stored of a camera, also its words in the index. Returns the number of captions. Raises
    SailqError."""
    deleted = 0
    while captions := archive.of_camera(camera, _STEP):
        archive.delete(captions)
        deleted += len(captions)
    archive.forget_words()
    archive.shrink(_PAGES)
    return deleted
