"""Runs the batches of a folder. With several gateways on it, each batch is run by one of them at a time."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.settings import Settings

from ..client import Client
from ..openai_api.batch_input import BatchInput, InvalidInput, LineError
from ..openai_api.batch_output import unanswered
from ..openai_api.batch_run import BatchRun
from ..openai_api.errors import ApiError
from .batches import Batch, BatchStore
from .files import FileStore

AT_ONCE = 2
"""Batches that a gateway runs at a time."""
_READ_SECONDS = 60.0
"""Processor time to read the media of one request."""
_SCAN_SECONDS = 2.0
"""How often a gateway looks for batches that nobody runs."""
_LOOK_SECONDS = 0.5
"""How often a running batch looks whether it is to end."""
_COUNT_SECONDS = 2.0
"""How often it writes its counts."""
_AGAIN_SECONDS = 10.0
"""After an error, when a gateway tries a batch again."""
_SWEEP_SECONDS = 600.0
_log = logging.getLogger("sailq.gateway")


class _Ends(Exception):
    """Ends the run of a batch. `status`: what the batch becomes; None: another gateway goes on with it."""

    def __init__(self, status: str | None) -> None:
        self.status = status


class BatchRunner:
    """Runs batches in threads, from `start` to `stop`."""

    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        settings: Settings,
        *,
        window: int = 64,
        arguments: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda owner, asked: asked,
        fetch: Callable[[list[str]], list[bytes]] | None = None,
    ) -> None:
        """
        Args:
            window: most requests of a batch that are read or answered at a time.
            arguments: as for `BatchRun`, by owner.
            fetch: as for `BatchRun`.
        """
        self._batches, self._files, self._settings = batches, files, settings
        self._window, self._arguments, self._fetch = window, arguments, fetch
        self._threads: dict[str, threading.Thread] = {}
        self._not_before: dict[str, float] = {}
        self._stopping = False
        self._woken = threading.Event()
        self._scanner = threading.Thread(target=self._scan_until_stopped, name="sailq-batches", daemon=True)
        self._swept = 0.0

    def start(self) -> None:
        self._scanner.start()

    def wake(self) -> None:
        """Makes the runner look for batches now."""
        self._woken.set()

    def stop(self) -> None:
        """Ends the runs, which takes some seconds: jobs in flight are cancelled. Other gateways go on with them."""
        self._stopping = True
        self._woken.set()
        self._scanner.join()
        for thread in self._threads.values():
            thread.join()

    def _scan_until_stopped(self) -> None:
        while not self._stopping:
            try:
                self._scan()
            except OSError as error:
                _log.warning("the folder of the batches cannot be read: %s", error)
            except Exception:  # the next look may succeed
                _log.exception("looking for batches")
            self._woken.wait(_SCAN_SECONDS)
            self._woken.clear()

    def _scan(self) -> None:
        self._threads = {name: thread for name, thread in self._threads.items() if thread.is_alive()}
        batches = self._batches.unfinished()
        ids = {batch.id for batch in batches}
        self._not_before = {name: at for name, at in list(self._not_before.items()) if name in ids}
        for batch in batches:
            ends = batch.status == "cancelling" or batch.expires <= time.time()
            if batch.id in self._threads or self._not_before.get(batch.id, 0.0) > time.monotonic():
                continue
            if ends or len(self._threads) < AT_ONCE:
                thread = threading.Thread(target=self._run, args=(batch.id,), name=f"sailq-{batch.id}", daemon=True)
                self._threads[batch.id] = thread
                thread.start()
        if time.monotonic() - self._swept > _SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._files.sweep()
            self._batches.sweep()

    def _run(self, id: str) -> None:
        try:
            with self._batches.lease(id) as leased:
                batch = self._batches.read(id) if leased else None
                if batch is None:
                    self._not_before[id] = time.monotonic() + _SCAN_SECONDS
                    return
                if batch.is_final:
                    return self._batches.tidy(id)
                _log.info("batch %s: running", id)
                self._process(batch)
        except _Ends:
            _log.info("batch %s: left to other gateways", id)
        except (SailqError, OSError) as error:
            self._not_before[id] = time.monotonic() + _AGAIN_SECONDS
            _log.warning("batch %s: %s", id, error)
        except Exception:
            self._not_before[id] = time.monotonic() + _AGAIN_SECONDS
            _log.exception("batch %s", id)
        finally:
            self.wake()

    def _process(self, batch: Batch) -> None:
        try:
            given = BatchInput(self._files.path(self._files.get(batch.owner, batch.input_file_id)))
        except InvalidInput as error:
            return self._fail(batch, error.errors)
        except (ApiError, BadRequest):
            return self._fail(batch, [LineError("input_file_not_found", "The input file was deleted or has expired.",
                                                param="input_file_id")])
        with closing(given):
            batch = replace(batch, counts={**batch.counts, "total": len(given.lines)})
            if batch.status == "validating":
                batch = batch.become("in_progress")
                self._batches.write(batch)
            run = BatchRun(
                given, self._batches.rows(batch.id), window=min(self._window, batch.max_queued or self._window),
                wait=batch.expires - time.time(), retry=False, arguments=partial(self._arguments, batch.owner),
                fetch=self._fetch, read_seconds=_READ_SECONDS,
            )
            with closing(run):
                self._finalize(batch, run, self._answer(batch, run))

    def _fail(self, batch: Batch, errors: list[LineError]) -> None:
        if batch.status == "cancelling":
            self._batches.end(batch.become("cancelled"))
        else:
            self._batches.end(batch.become("failed", errors=[error.as_json() for error in errors]))

    def _answer(self, batch: Batch, run: BatchRun) -> str:
        """Answers the requests that are left. Returns what the batch becomes."""
        looked = counted = 0.0
        answered = 0

        def look() -> None:
            nonlocal looked, counted, answered
            now = time.monotonic()
            if now - looked < _LOOK_SECONDS:
                return
            looked = now
            if self._stopping:
                raise _Ends(None)
            if self._batches.cancelled_at(batch.id) is not None:
                raise _Ends("cancelled")
            if batch.expires <= time.time():
                raise _Ends("expired")
            if now - counted >= _COUNT_SECONDS and len(run.rows) != answered:
                counted, answered = now, len(run.rows)
                self._batches.write(_counted(batch, run))

        try:
            if run.left:
                look()
                with Client(settings=self._settings) as client, closing(run.run(client, idle=look)) as rows:
                    for _ in rows:
                        look()
        except _Ends as ends:
            if ends.status is None:
                raise
            return ends.status
        return "completed" if self._batches.cancelled_at(batch.id) is None else "cancelled"

    def _finalize(self, batch: Batch, run: BatchRun, status: str) -> None:
        """Writes the output and error files and the last record. Repeated after a crash, it writes the same files."""
        batch = _counted(batch, run)
        if status == "completed":
            batch = batch.become("finalizing")
            self._batches.write(batch)
        rows = list(run.ordered())
        if status == "expired":
            left = [(line, unanswered(line, "batch_expired", "The completion window ended before this request."))
                    for line in run.left]
            rows = sorted([*rows, *left], key=lambda row: row[0].index)
            batch = replace(batch, counts={**batch.counts, "failed": batch.counts["failed"] + len(left)})
        names: dict[str, str | None] = {}
        for kind, failed in (("output", False), ("error", True)):
            data = [row.data for _, row in rows if row.failed == failed]
            names[kind] = None if not data else self._files.put(
                f"file-{hashlib.sha256(f'{batch.id} {kind}'.encode()).hexdigest()[:32]}", batch.owner,
                f"{batch.id}_{kind}.jsonl", "batch_output", data, batch.lifetime,
            ).id
        asked = self._batches.cancelled_at(batch.id)
        if status == "cancelled" and asked is not None:
            batch = batch.become("cancelling", asked)
        self._batches.end(batch.become(status, output_file_id=names["output"], error_file_id=names["error"]))
        _log.info("batch %s: %s", batch.id, status)


def _counted(batch: Batch, run: BatchRun) -> Batch:
    failed = run.failures
    return replace(batch, counts={**batch.counts, "completed": len(run.rows) - failed, "failed": failed})
