"""Runs a batch of requests: resumes an earlier run, and writes each response as it comes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sailq.shared.errors import BadRequest, quoted
from sailq.shared.workers import live_workers

from ..captioning.names import for_terminal
from ..captioning.readers import MAX_SECONDS, Readers
from ..captioning.rowfile import RowFile, finished
from ..captioning.window import Request, run_batch
from ..client import Client
from .batch_input import BatchInput, Line
from .batch_output import REQUESTS, Row, row_of
from .errors import ApiError, unknown_model
from .messages import addresses, media_of, put_fetched
from .requests import read_question, read_request

Arguments = dict[str, Any]


class BatchRun:
    """One run over the requests of `given`. It locks `out` and reads what an earlier run left in it.

    A row of an earlier run answers a request with the same id: the same custom_id and body.

    Attributes:
        rows: by a request's index, its row.
        resumed: number of rows of earlier runs.
        wall: seconds that the run took.
    """

    def __init__(
        self,
        given: BatchInput,
        out: Path,
        *,
        window: int,
        wait: float,
        base: Path | None = None,
        retry: bool = True,
        arguments: Callable[[Arguments], Arguments] = lambda asked: asked,
        fetch: Callable[[list[str]], list[bytes]] | None = None,
        read_seconds: float = MAX_SECONDS,
    ) -> None:
        """
        Args:
            window: most requests that are read or answered at a time.
            wait: seconds that a request waits for room if the queue is full.
            base: folder that the media's paths start from; without it, paths are refused.
            retry: whether a request that an earlier run could not answer is asked again.
            arguments: makes those arguments of `Client.submit` that a request sets into those that it gets: priority,
                timeout, conversation and metadata. It may raise ApiError.
            fetch: gets what is at the http(s) addresses of a request; called in a thread. Without it, they are refused.
            read_seconds: seconds of processor time to read the media of one request.

        Raises BadRequest if another run has `out` open, or if it has answers of another batch.
        """
        self._given, self._window, self._wait = given, window, wait
        self._base, self._arguments, self._fetch = base, arguments, fetch
        self._read_seconds = read_seconds
        self.rows: dict[int, Row] = {}
        self.wall = 0.0
        self._before: dict[int, Row] = {}
        """By index, the failed or outdated row that stays until its request has a new one."""
        self._file = RowFile(out, REQUESTS)
        try:
            self._resume(out, retry)
        except BaseException:
            self.close()
            raise
        self.resumed = len(self.rows)

    def _resume(self, out: Path, retry: bool) -> None:
        held: dict[str, list[Row]] = defaultdict(list)
        for row in self._file.rows:
            held[row.custom_id].append(row)
        foreign = next(iter(held.keys() - {line.custom_id for line in self._given.lines}), None)
        if foreign is not None:
            raise BadRequest(
                f"{for_terminal(str(out))} has answers that are not of this batch, such as for {quoted(foreign)!r}. "
                f"Choose another {REQUESTS.option}."
            )
        for line in self._given.lines:
            rows = sorted(held.get(line.custom_id, ()), key=lambda row: row.failed)
            answers = [row for row in rows if row.id == line.id and not (retry and row.failed)]
            if answers:
                self.rows[line.index] = answers[0]
            elif rows:
                self._before[line.index] = rows[0]

    @property
    def left(self) -> list[Line]:
        """The requests that have no row yet."""
        return [line for line in self._given.lines if line.index not in self.rows]

    @property
    def failures(self) -> int:
        return sum(row.failed for row in self.rows.values())

    def run(self, client: Client, *, idle: Callable[[], None] | None = None) -> Generator[Row, None, None]:
        """Yields each new row once it is written. At the end, even after an error, sorts `out` in the input's order.

        `idle`: called at least every 2 s while nothing finishes; an error that it raises ends the run.

        Raises ServerUnavailable, and SailqError if a row cannot be written or `out` cannot be sorted.
        """
        began = time.monotonic()
        batch = run_batch(
            client, self.left, lambda line: self._asked(client, line), window=self._window, patience=self._wait,
            idle=idle, readers=Readers(max_seconds=self._read_seconds),
        )
        with finished(lambda: self._finish(began)), closing(batch):
            for line, answer, _ in batch:
                row = row_of(line, answer)
                self._file.append(row)
                self.rows[line.index] = row
                yield row

    def _finish(self, began: float) -> None:
        self.wall = time.monotonic() - began
        rows = {**self._before, **self.rows}
        self._file.finish(rows[index] for index in sorted(rows))

    def close(self) -> None:
        """Releases the lock of `out`."""
        self._file.close()

    def ordered(self) -> Iterator[tuple[Line, Row]]:
        """The rows so far, in the order of the input."""
        return ((line, self.rows[line.index]) for line in self._given.lines if line.index in self.rows)

    def _asked(self, client: Client, line: Line) -> Request:
        """Raises ApiError for a request that is refused."""
        request = read_request(self._given.body(line))
        if request.stream:
            raise ApiError(400, "stream is not supported in a batch.", code="unsupported_parameter", param="stream")
        card = client.card(request.model)
        if card is None and live_workers(client.connection):
            raise unknown_model(request.model)
        question = read_question(request, card, local_files=self._base is not None)
        media = media_of(question.messages)
        if self._fetch is not None and (urls := addresses(media)):
            put_fetched(media, self._fetch(urls))
        arguments = self._arguments(request.arguments)
        return Request(question.messages, request.model, self._base, {**arguments, "options": question.options})
