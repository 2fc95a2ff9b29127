"""Runs a batch: resumes an earlier run, writes each row as it comes, and makes a summary."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest
from sailq.shared.jobs import GenerationOptions
from sailq.shared.media.messages import Prepared

from ..client import Client
from .inputs import Clip
from .names import as_text, from_text
from .readers import Readers
from .rowfile import RowFile, finished
from .rows import CAPTIONS, Row, failed, row_of
from .sidecars import Sidecars
from .window import Request, run_batch

_ABOUT_CHARACTERS = 500
_LATEST = 1e12
"""Seconds since the epoch; NaN is not below it."""


@dataclass(frozen=True)
class Summary:
    """The figures of a batch. Rates and latencies count only this run's answers.

    Attributes:
        first_token_median, first_token_p90: seconds from submission, the queue included.
        stream_tokens_per_second: median over the answers.
        tokens_per_second, captions_per_second: all answers over the wall time.
        wall: seconds.
    """

    clips: int
    failures: int
    resumed: int
    first_token_median: float | None
    first_token_p90: float | None
    stream_tokens_per_second: float | None
    tokens_per_second: float | None
    captions_per_second: float | None
    wall: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Captioning:
    """One run over `clips`. After `start`, `todo` holds the clips that no earlier run has answered.

    A row answers a clip if its request is the same, and if the clip's files are gone or still have the size and mtime
    in the row. Rows of earlier versions have neither.

    Attributes:
        wait: seconds that a clip waits for room if the queue is full.
        kept: rows of earlier runs that match no clip of this run; `out` keeps them.
    """

    clips: Sequence[Clip]
    model: str
    options: GenerationOptions
    window: int
    wait: float = 0.0
    out: Path | None = None
    sidecars: Sidecars | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    todo: list[Clip] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)
    wall: float = 0.0
    _file: RowFile[Row] | None = None
    _files: dict[int, list[Row]] = field(default_factory=dict)
    """By index, the state of each clip's files before they were read."""
    _before: dict[int, Row] = field(default_factory=dict)
    """By index, the failed or outdated row that stays until its clip has a new one."""

    def start(self) -> None:
        """Locks `out` and reads what an earlier run left in it. Raises BadRequest for rows of another batch."""
        self._file = None if self.out is None else RowFile(self.out, CAPTIONS)
        held: dict[str, list[Row]] = defaultdict(list)
        for row in self._file.rows if self._file else ():
            held[row["request"]].append(row)
        clips = {self._request(clip): clip for clip in self.clips}
        for clip in self.clips:
            self._files[clip.index] = clip.files()
            rows = held.get(self._request(clip), [])
            at = next((at for at, row in enumerate(rows) if self._answers(row, clip)), None)
            if at is None:
                self.todo.append(clip)
            else:
                self.rows[clip.index] = self._row(clip, rows.pop(at))
        for clip in self.todo:
            if before := held.get(self._request(clip)):
                self._before[clip.index] = before.pop(0)
        sources = {clip.source for clip in self.clips}
        for row in (row for rows in held.values() for row in rows):
            asked = clips.get(row["request"])
            if asked is not None and not self._answers(row, asked):
                continue  # a later row replaced this one, but the run died before it removed this one
            if asked is None and failed(row) and row.get("source") in sources:
                continue  # a failed attempt with other options
            if asked is None and not failed(row) and not self._gone(row):
                raise BadRequest(
                    f"{self.out} has answers that are not of this batch, such as for {row.get('source')!r}: the clips, "
                    "the prompt, the model or the options differ. Choose another --out."
                )
            self.kept.append(row)
        for clip in self.clips if self.sidecars else ():
            if clip.index in self.rows and self.sidecars:
                self.sidecars.write(clip, self.rows[clip.index])

    def run(
        self,
        client: Client,
        *,
        seen: Callable[[Clip, Prepared], None] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> Generator[Row, None, None]:
        """Yields each new row once it is written. At the end, even after an error, sorts `out` in the input's order.

        Raises ServerUnavailable, and SailqError if a row cannot be written or `out` cannot be sorted.
        """
        began = time.monotonic()
        batch = run_batch(
            client, self._identified(), self._asked, window=self.window, patience=self.wait, seen=seen, idle=idle,
            readers=Readers(),
        )
        with finished(lambda: self._finish(began)), closing(batch):
            for clip, answer, media in batch:
                row = self._row(clip, row_of(answer) | media)
                if self._file is not None:
                    self._file.append(row)
                self.rows[clip.index] = row
                if self.sidecars is not None:
                    self.sidecars.write(clip, row)
                yield row

    def _finish(self, began: float) -> None:
        self.wall = time.monotonic() - began
        if self._file is not None:
            self._file.finish(self._all())

    def close(self) -> None:
        """Releases the lock of `out`."""
        if self._file is not None:
            self._file.close()

    def ordered(self) -> list[Row]:
        """The rows so far, in the order of the input."""
        return [self.rows[index] for index in sorted(self.rows)]

    def _all(self) -> Iterator[Row]:
        """All rows for `out`: those of the input, then those in `kept`."""
        rows = {**self._before, **self.rows}
        for index in sorted(rows):
            yield {**rows[index], "index": index}
        for index, row in enumerate(self.kept, len(self.clips)):
            yield {**row, "index": index}

    def _identified(self) -> Iterator[Clip]:
        """Yields the clips in `todo`, and notes the state of each one's files shortly before they are read.

        If the files change after that, the next run captions the clip again.
        """
        for clip in self.todo:
            self._files[clip.index] = clip.files()
            yield clip

    def _answers(self, row: Row, clip: Clip) -> bool:
        now = self._files[clip.index]
        return not failed(row) and (_missing(now) or _states(row.get("files", now)) == _states(now))

    def _gone(self, row: Row) -> bool:
        """Whether all files of a row's clip are gone."""
        base = self.clips[0].base
        if "files" not in row and base is not None:
            return False  # a row of an earlier version: its source may not be a path
        paths = [file["path"] for file in row["files"]] if "files" in row else [row["source"]]
        names = [name for path in paths for name in from_text(path)]
        return bool(names) and not any(os.path.lexists((base or Path()) / name) for name in names)

    def summary(self) -> Summary:
        fresh = [self.rows[clip.index] for clip in self.todo if clip.index in self.rows]
        answers = [row for row in fresh if not failed(row)]
        first = [row["metrics"]["timings"]["time_to_first_token"] for row in answers]
        first = sorted(seconds for seconds in first if seconds is not None)
        rates = [rate for row in answers if (rate := row["metrics"]["tokens_per_second"]) is not None]
        tokens = sum(row["metrics"]["usage"]["completion_tokens"] for row in answers)
        worked = bool(answers) and self.wall > 0
        return Summary(
            clips=len(self.clips),
            failures=sum(failed(row) for row in self.rows.values()),
            resumed=len(self.clips) - len(self.todo),
            first_token_median=statistics.median(first) if first else None,
            first_token_p90=first[int(0.9 * (len(first) - 1) + 0.5)] if first else None,
            stream_tokens_per_second=statistics.median(rates) if rates else None,
            tokens_per_second=tokens / self.wall if worked else None,
            captions_per_second=len(answers) / self.wall if worked else None,
            wall=self.wall,
        )

    def _asked(self, clip: Clip) -> Request:
        return Request(clip.messages, self.model, clip.base, {"options": self.options, "metadata": _about(clip)})

    def _request(self, clip: Clip) -> str:
        return clip.request(self.model, self.options)

    def _row(self, clip: Clip, answer: Row) -> Row:
        files = self._files[clip.index]
        if _missing(files):  # the row still has the data of the deleted files
            files = answer.get("files", files)
        about = {"index": clip.index, "source": clip.source, "files": files}
        return {**about, **answer, **about, "metadata": dict(clip.metadata), "request": self._request(clip)}


def _about(clip: Clip) -> dict[str, Any]:
    """What an archive of results is told of a clip."""
    said = {"source": clip.source, **{name: clip.metadata.get(name) for name in ("camera", "time")}}
    texts = {name: as_text(value)[:_ABOUT_CHARACTERS] for name, value in said.items() if isinstance(value, str)}
    at = said["time"]
    return {**texts, **({"time": at} if isinstance(at, int | float) and 0 < at < _LATEST else {})}


def _missing(files: Sequence[Row]) -> bool:
    return any(file["size"] is None for file in files)


def _states(files: Sequence[Row]) -> list[Any]:
    return [(file["size"], file["mtime"]) for file in files]


def right(row: Row) -> bool | None:
    """Whether the text equals the input's `answer`; None if the input has none."""
    truth = row["metadata"].get("answer")
    return None if truth is None else not failed(row) and row["text"].strip() == str(truth).strip()


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
