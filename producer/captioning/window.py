"""Many jobs through one client: media are read ahead in threads, a bounded window of jobs is in flight."""

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
"""How soon a clip that was read is followed while others are still being read."""
_FULL_SECONDS = 1.0
"""How often a clip asks again for room where the queue is full."""
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
    """Each clip with its row (see `rows.as_row` and `rows.media_fields`), in the order in which they finish.

    A clip that cannot be read gets an error row at once. When the caller stops iterating, or an error ends
    the batch, the jobs still in flight are cancelled.

    Args:
        window: most clips being read or answered at a time.
        seen: gets each clip's frames, in a reader's thread, before they are uploaded.
        idle: called now and then while nothing comes.
        encode: makes the blob of each medium's frames.
        patience: seconds that a clip waits for room where the queue is full, or for replicas.
        readers: read the media, and are closed at the end; without them threads of this process read.

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
                except Exception as error:  # a clip never stops the others, whatever it does to a decoder
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
        with suppress(ServerUnavailable):  # then none can be cancelled
            for job in [*running, *(handle.job for handle in handles)]:
                with suppress(NotFound):
                    client.cancel(job)
