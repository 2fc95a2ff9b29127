"""A batch from input to rows: takes over what an earlier run did, writes each row as it comes, sums up."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.jobs import GenerationOptions
from sailq.shared.media.messages import Prepared

from ..client import Client
from .inputs import Clip
from .names import from_text
from .readers import Readers
from .rowfile import RowFile
from .rows import Row, failed
from .sidecars import Sidecars
from .window import run_batch


@dataclass(frozen=True)
class Summary:
    """A batch in figures. Rates and latencies are of this run's answers, without those of earlier runs.

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
    """One run over `clips`. After `start`, `todo` are those that no earlier run has answered.

    A row answers a clip if it is of the same request, and if the clip's files have the size and time of change that
    the row tells (rows of earlier versions tell none) or are gone.

    Attributes:
        wait: seconds that a clip waits for room where the queue is full.
        kept: other rows of earlier runs: their clips are gone, or no longer asked for as often.
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
    _file: RowFile | None = None
    _files: dict[int, list[Row]] = field(default_factory=dict)
    """By index, what each clip's files were before they were read."""
    _before: dict[int, Row] = field(default_factory=dict)
    """By index, the failed or outdated row that stays until its clip has a new one."""

    def start(self) -> None:
        """Locks `out` and reads what an earlier run left in it. Raises BadRequest for rows of another batch."""
        self._file = None if self.out is None else RowFile(self.out)
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
                continue  # a run died before it removed this row, which a later one replaced
            if asked is None and failed(row) and row.get("source") in sources:
                continue  # tried before with other options
            if asked is None and not failed(row) and not self._gone(row):
                raise BadRequest(
                    f"{self.out} holds answers to something else (to {row.get('source')!r}, for one): "
                    "other clips, prompt, model or options. Choose another --out."
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
        """Each new row, once it is written. However this ends, `out` is then put in the order of the input.

        Raises ServerUnavailable, and SailqError where a row cannot be written or `out` not be put in order.
        """
        began = time.monotonic()
        batch = run_batch(
            client, self._identified(), model=self.model, options=self.options, window=self.window,
            patience=self.wait, seen=seen, idle=idle, readers=Readers(),
        )
        try:
            with closing(batch):
                for clip, answer in batch:
                    row = self._row(clip, answer)
                    if self._file is not None:
                        self._file.append(row)
                    self.rows[clip.index] = row
                    if self.sidecars is not None:
                        self.sidecars.write(clip, row)
                    yield row
        except Exception:
            with suppress(SailqError):  # the first error is the cause
                self._finish(began)
            raise
        except BaseException:
            self._finish(began)
            raise
        self._finish(began)

    def _finish(self, began: float) -> None:
        self.wall = time.monotonic() - began
        if self._file is not None:
            self._file.finish(self._all())

    def close(self) -> None:
        """Ends the lock of `out`."""
        if self._file is not None:
            self._file.close()

    def ordered(self) -> list[Row]:
        """The input's rows so far, in its order."""
        return [self.rows[index] for index in sorted(self.rows)]

    def _all(self) -> Iterator[Row]:
        """Every row that `out` must hold: the input's, and after them those that are kept."""
        rows = {**self._before, **self.rows}
        for index in sorted(rows):
            yield {**rows[index], "index": index}
        for index, row in enumerate(self.kept, len(self.clips)):
            yield {**row, "index": index}

    def _identified(self) -> Iterator[Clip]:
        """The clips to do. Each is looked at when its turn comes, some time before it is read: if it changes after
        that, the next run does it again."""
        for clip in self.todo:
            self._files[clip.index] = clip.files()
            yield clip

    def _answers(self, row: Row, clip: Clip) -> bool:
        now = self._files[clip.index]
        return not failed(row) and (_missing(now) or _states(row.get("files", now)) == _states(now))

    def _gone(self, row: Row) -> bool:
        """Whether nothing is left of the files of a row's clip."""
        base = self.clips[0].base
        if "files" not in row and base is not None:
            return False  # of an earlier version: its source need not be a path
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

    def _request(self, clip: Clip) -> str:
        return clip.request(self.model, self.options)

    def _row(self, clip: Clip, answer: Row) -> Row:
        files = self._files[clip.index]
        if _missing(files):  # then the row tells more
            files = answer.get("files", files)
        about = {"index": clip.index, "source": clip.source, "files": files}
        return {**about, **answer, **about, "metadata": dict(clip.metadata), "request": self._request(clip)}


def _missing(files: Sequence[Row]) -> bool:
    return any(file["size"] is None for file in files)


def _states(files: Sequence[Row]) -> list[Any]:
    return [(file["size"], file["mtime"]) for file in files]


def right(row: Row) -> bool | None:
    """Whether the text is the true one, where the input told it as `answer`; else None."""
    truth = row["metadata"].get("answer")
    return None if truth is None else not failed(row) and row["text"].strip() == str(truth).strip()


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
