"""Captions as `{stem}.txt` beside their clips."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from sailq.shared.errors import BadRequest, SailqError

from .inputs import Clip
from .names import for_terminal
from .rows import Row, failed


class Sidecars:
    """The texts of one batch. What a file of such a name held before is replaced."""

    def __init__(self, clips: Sequence[Clip], taken: Iterable[Path] = ()) -> None:
        """`taken`: files that must stay. Raises BadRequest where two clips would share a text, or one has no file."""
        owners = {Path(os.path.realpath(path)): "a file of this batch" for path in taken}
        owners |= {Path(os.path.realpath(place)): "a clip" for clip in clips for place in clip.places}
        self._places: dict[int, Path] = {}
        for clip in clips:
            name = for_terminal(clip.source)
            if not clip.places:  # a URL, or what can be no file's name
                raise BadRequest(f"{name} is no file, so --sidecar has no place for its text.")
            text = clip.places[0].with_suffix(".txt")
            place = Path(os.path.realpath(text))
            if place in owners:
                raise BadRequest(f"--sidecar has no place for the text of {name}: {text.name} is {owners[place]}.")
            owners[place] = f"that of {name}"
            self._places[clip.index] = text

    def write(self, clip: Clip, row: Row) -> None:
        """Writes an answer's text, if it is not there yet. Raises SailqError where it cannot be written."""
        if failed(row):
            return
        place = self._places[clip.index]
        data = f"{row['text']}\n".encode("utf-8", "backslashreplace")
        draft = place.with_name(f".sailq-{os.getpid()}.txt")
        try:
            if place.exists() and place.read_bytes() == data:
                return
            draft.write_bytes(data)
            draft.replace(place)
        except OSError as error:
            with suppress(OSError):  # of a disk that may only be read, for one
                draft.unlink()
            raise SailqError(f"{for_terminal(str(place))} cannot be written: {error.strerror}.") from None

