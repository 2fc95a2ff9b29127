"""Runs many jobs through one client. Media are read ahead in threads, and a bounded number of jobs is in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sailq.shared.connection import server_errors
from sailq.shared.errors import NotFound, NotReplicated, QueueFull, ServerUnavailable
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import Result
from sailq.shared.media.messages import Encode, Prepared, prepare

from ..client import Client, JobHandle
from ..waiting import Waiter
from .readers import READERS, Readers
from .rows import Row, media_fields

_POLL_SECONDS = 0.05
"""Seconds between polls while items are being read, so that a read item is submitted soon."""
_FULL_SECONDS = 1.0
"""Seconds between attempts to submit an item to a full queue."""
_IDLE_SECONDS = 2.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """What an item of a batch asks.

    Attributes:
        messages: chat messages as `messages.prepare` takes them.
        base: folder that the media's paths start from.
        arguments: further arguments of `Client.submit_prepared`, such as options.
    """

    messages: Any
    model: str
    base: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def run_batch(
    client: Client,
    items: Iterable[Item],
    request: Callable[[Item], Request],
    *,
    window: int,
    seen: Callable[[Item, Prepared], None] | None = None,
    idle: Callable[[], None] | None = None,
    encode: Encode = encode_frames,
    patience: float = 0.0,
    readers: Readers | None = None,
) -> Generator[tuple[Item, Result | Exception, Row], None, None]:
    """Yields each item with its result and `rows.media_fields`, in the order in which they finish.

    An item that cannot be read is yielded with its error at once, and a job that was deleted with NotFound. If the
    caller stops iterating or an error ends the batch, the jobs in flight are cancelled.

    Args:
        request: what an item asks; called in a reader's thread. Its errors are those of the item.
        window: most items that are read or answered at a time.
        seen: gets each item's frames, in a reader's thread, before they are uploaded.
        idle: called at least every 2 s while nothing finishes. An error that it raises ends the batch.
        encode: makes the blob of each medium's frames.
        patience: seconds that an item waits for room in the queue, or for replicas.
        readers: read the media, and are closed at the end; None: threads of this process read.

    Raises ServerUnavailable.
    """

    def submit(item: Item) -> tuple[JobHandle, Row]:
        asked = request(item)
        with server_errors(client.connection):
            card = client.card(asked.model)
        read = readers.prepare if readers else prepare
        prepared = read(asked.messages, base=asked.base, card=card, encode=encode)
        if seen is not None:
            seen(item, prepared)
        until, job = time.monotonic() + patience, None
        while True:
            try:
                handle = client.submit_prepared(prepared, model=asked.model, **{**asked.arguments, "job": job})
                return handle, media_fields(prepared)
            except (QueueFull, NotReplicated) as error:
                job = error.job if isinstance(error, NotReplicated) else job
                if time.monotonic() > until or closing.wait(_FULL_SECONDS):
                    raise

    closing = threading.Event()
    waiter = Waiter(client.connection, client.inbox)
    reading: dict[Future[tuple[JobHandle, Row]], Item] = {}
    running: dict[str, tuple[Item, Row]] = {}
    left = iter(items)
    quiet_since = time.monotonic()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="sailq-read")
    try:
        while True:
            while len(reading) + len(running) < window:
                try:
                    item = next(left)
                except StopIteration:
                    break
                reading[pool.submit(submit, item)] = item
            if not reading and not running:
                return
            read, _ = wait(reading, 0 if running else _IDLE_SECONDS, FIRST_COMPLETED)
            for future in read:
                item = reading.pop(future)
                try:
                    handle, media = future.result()
                except ServerUnavailable:
                    raise
                except Exception as error:  # no error of one item stops the others
                    yield item, error, media_fields(None)
                else:
                    running[handle.job] = item, media
                    waiter.add(handle.job)
            ended = waiter.poll(_POLL_SECONDS if reading else _IDLE_SECONDS).ended if running else []
            for job, result in ended:
                item, media = running.pop(job)
                yield item, result, media
            if read or ended:
                quiet_since = time.monotonic()
            elif idle is not None and time.monotonic() - quiet_since > _IDLE_SECONDS:
                quiet_since = time.monotonic()
                idle()
    finally:
        closing.set()
        if readers is not None:
            readers.close()
        pool.shutdown(cancel_futures=True)
        handles = [one.result()[0] for one in reading if not one.cancelled() and one.exception() is None]
        with suppress(ServerUnavailable):  # then no job can be cancelled
            for job in [*running, *(handle.job for handle in handles)]:
                with suppress(NotFound):
                    client.cancel(job)
