"""Writes captions to `{stem}.txt` beside their clips."""

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
    """The text files of one batch. Existing files of these names are overwritten."""

    def __init__(self, clips: Sequence[Clip], taken: Iterable[Path] = ()) -> None:
        """`taken`: files that must not be overwritten. Raises BadRequest if two clips share a text file, or a clip is
        not a file."""
        owners = {Path(os.path.realpath(path)): "a file of this batch" for path in taken}
        owners |= {Path(os.path.realpath(place)): "a clip" for clip in clips for place in clip.places}
        self._places: dict[int, Path] = {}
        for clip in clips:
            name = for_terminal(clip.source)
            if not clip.places:  # a URL, or an invalid file name
                raise BadRequest(f"{name} is not a file, so --sidecar cannot write a text file beside it.")
            text = clip.places[0].with_suffix(".txt")
            place = Path(os.path.realpath(text))
            if place in owners:
                raise BadRequest(f"--sidecar cannot write the text of {name}: {text.name} is {owners[place]}.")
            owners[place] = f"the text of {name}"
            self._places[clip.index] = text

    def write(self, clip: Clip, row: Row) -> None:
        """Writes an answer's text unless the file already has it. Raises SailqError if it cannot be written."""
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
            with suppress(OSError):  # such as on a read-only disk
                draft.unlink()
            raise SailqError(f"{for_terminal(str(place))} cannot be written: {error.strerror}.") from None

