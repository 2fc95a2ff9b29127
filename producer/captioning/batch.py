"""A batch from input to rows: takes over what an earlier run did, writes each row as it comes, sums up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...shared.errors import BadRequest
from ...shared.jobs import GenerationOptions
from ..client import Client
from ..messages import Prepared
from .inputs import Clip
from .readers import Readers
from .rows import Row, RowFile, failed
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

    `wait`: seconds that a clip waits for room where the queue is full.
    """

    clips: Sequence[Clip]
    model: str
    options: GenerationOptions
    window: int
    wait: float = 0.0
    out: Path | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    todo: list[Clip] = field(default_factory=list)
    wall: float = 0.0

    def start(self) -> None:
        """Reads what an earlier run left in `out`. Raises BadRequest for rows that are of another batch."""
        self._file = None if self.out is None else RowFile(self.out)
        for clip in self.clips:
            row = self._file.take_done(self._request(clip)) if self._file else None
            if row is None:
                self.todo.append(clip)
            else:
                self.rows[clip.index] = self._row(clip, row)
        other = self._file.left_over() if self._file else None
        if other is not None:
            raise BadRequest(
                f"{self.out} holds answers to something else (to {other.get('source')!r}, for one): "
                "other clips, prompt, model or options. Choose another --out."
            )

    def run(
        self,
        client: Client,
        *,
        seen: Callable[[Clip, Prepared], None] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> Generator[Row, None, None]:
        """Each new row, once it is written. However this ends, `out` is then in the order of the input."""
        began = time.monotonic()
        batch = run_batch(
            client, self.todo, model=self.model, options=self.options, window=self.window, patience=self.wait,
            seen=seen, idle=idle, readers=Readers(),
        )
        try:
            with closing(batch):
                for clip, answer in batch:
                    row = self._row(clip, answer)
                    self.rows[clip.index] = row
                    if self._file is not None:
                        self._file.append(row)
                    yield row
        finally:
            self.wall = time.monotonic() - began
            if self._file is not None:
                self._file.finish(self.ordered())

    def ordered(self) -> list[Row]:
        """The rows so far, in the order of the input."""
        return [self.rows[index] for index in sorted(self.rows)]

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
        about = {"index": clip.index, "source": clip.source}
        return {**about, **answer, **about, "metadata": dict(clip.metadata), "request": self._request(clip)}


def right(row: Row) -> bool | None:
    """Whether the text is the true one, where the input told it as `answer`; else None."""
    truth = row["metadata"].get("answer")
    return None if truth is None else not failed(row) and row["text"].strip() == str(truth).strip()


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
