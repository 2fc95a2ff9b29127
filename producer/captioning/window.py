"""Runs many jobs through one client. Media are read ahead in threads, and a bounded number of jobs is in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from sailq.shared.connection import server_errors
from sailq.shared.errors import NotFound, NotReplicated, QueueFull, SailqError, ServerUnavailable
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import GenerationOptions
from sailq.shared.media.messages import Encode, Prepared, prepare

from ..client import Client, JobHandle
from ..waiting import Waiter
from .inputs import Clip
from .readers import READERS, Readers
from .rows import Row, as_row, failed_row, media_fields

_POLL_SECONDS = 0.05
"""Seconds between polls while clips are being read, so that a read clip is submitted soon."""
_FULL_SECONDS = 1.0
"""Seconds between attempts to submit a clip to a full queue."""
_IDLE_SECONDS = 2.0


def run_batch(
    client: Client,
    clips: Iterable[Clip],
    *,
    model: str,
    options: GenerationOptions,
    window: int,
    seen: Callable[[Clip, Prepared], None] | None = None,
    idle: Callable[[], None] | None = None,
    encode: Encode = encode_frames,
    patience: float = 0.0,
    readers: Readers | None = None,
) -> Generator[tuple[Clip, Row], None, None]:
    """Yields each clip with its row (see `rows.as_row` and `rows.media_fields`), in the order in which they finish.

    A clip that cannot be read gets an error row at once. If the caller stops iterating or an error
    ends the batch, the jobs in flight are cancelled.

    Args:
        window: most clips that are read or answered at a time.
        seen: gets each clip's frames, in a reader's thread, before they are uploaded.
        idle: called regularly while nothing finishes.
        encode: makes the blob of each medium's frames.
        patience: seconds that a clip waits for room in the queue, or for replicas.
        readers: read the media, and are closed at the end; None: threads of this process read.

    Raises ServerUnavailable.
    """

    def submit(clip: Clip) -> tuple[JobHandle, Row]:
        with server_errors(client.connection):
            card = client.card(model)
        read = readers.prepare if readers else prepare
        prepared = read(clip.messages, base=clip.base, card=card, encode=encode)
        if seen is not None:
            seen(clip, prepared)
        until, job = time.monotonic() + patience, None
        while True:
            try:
                return client.submit_prepared(prepared, model=model, options=options, job=job), media_fields(prepared)
            except (QueueFull, NotReplicated) as error:
                job = error.job if isinstance(error, NotReplicated) else job
                if time.monotonic() > until or closing.wait(_FULL_SECONDS):
                    raise

    closing = threading.Event()
    waiter = Waiter(client.connection, client.inbox)
    reading: dict[Future[tuple[JobHandle, Row]], Clip] = {}
    running: dict[str, tuple[Clip, Row]] = {}
    left = iter(clips)
    quiet_since = time.monotonic()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="sailq-read")
    try:
        while True:
            while len(reading) + len(running) < window and (clip := next(left, None)) is not None:
                reading[pool.submit(submit, clip)] = clip
            if not reading and not running:
                return
            read, _ = wait(reading, 0 if running else None, FIRST_COMPLETED)
            for future in read:
                clip = reading.pop(future)
                try:
                    handle, media = future.result()
                except ServerUnavailable:
                    raise
                except SailqError as error:
                    yield clip, failed_row(error) | media_fields(None)
                except Exception as error:  # no error of one clip stops the others
                    reason = f"This clip cannot be read: {type(error).__name__}: {error}."
                    yield clip, failed_row(SailqError(reason)) | media_fields(None)
                else:
                    running[handle.job] = clip, media
                    waiter.add(handle.job)
            if not running:
                continue
            for job, result in waiter.poll(_POLL_SECONDS if reading else _IDLE_SECONDS).ended:
                quiet_since = time.monotonic()
                clip, media = running.pop(job)
                yield clip, (failed_row(result) if isinstance(result, NotFound) else as_row(result)) | media
            if idle is not None and time.monotonic() - quiet_since > _IDLE_SECONDS:
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
