"""Writes streamed text to the server. The device's thread adds text, and one thread writes it in batches."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Literal

import redis

from sailq.shared import keys
from sailq.shared.connection import OUTAGES
from sailq.shared.scripts import script

Kind = Literal["text", "reasoning"]
FLUSH_SECONDS = 0.05
"""The longest that text waits to be written, in seconds. The first token is written at once."""
FLUSH_TOKENS = 256
"""Tokens of all streams together that cause a flush at once."""
_OUTAGE_SECONDS = 1.0

_log = logging.getLogger("sailq.publisher")


@dataclass(eq=False)
class Stream:
    """One attempt's text, or its thought. `sent` counts the characters already written.

    `kind`: the field of its entries that holds what is said. Readers that know no thoughts skip entries without a text.
    """

    job: str
    attempt: int
    kind: Kind = "text"
    sent: int = 0
    pending: list[str] = field(default_factory=list)


class Publisher:
    """Writes the text of all running jobs in one command per flush.

    Each entry states the character of its attempt's text or thought at which it begins (`at`), so that readers can skip
    an entry that was written twice after a lost reply.
    """

    def __init__(self, connection: redis.Redis, ttl: int) -> None:
        """`ttl`: seconds that a stream outlives its newest entry."""
        self._say = script(connection, "say")  # a script, because a full server refuses a plain XADD
        self._ttl = ttl
        self._dirty: dict[Stream, None] = {}
        self._waiting = 0  # tokens, of all streams
        self._changed = threading.Condition()
        self._closed = False
        self._flushing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sailq-publisher", daemon=True)
        self._thread.start()

    def put(self, stream: Stream, text: str) -> None:
        """Adds text, on the device's thread. Never waits for the network."""
        with self._changed:
            first = not self._dirty
            stream.pending.append(text)
            self._dirty[stream] = None
            self._waiting += 1
            if first or self._waiting == FLUSH_TOKENS:  # waking the thread at each token would cost too much
                self._changed.notify()

    def flush(self) -> None:
        """Writes all pending text and returns when it is in Redis. Raises redis-py's errors.

        Text that was not written because of an outage stays pending.
        """
        with self._flushing:
            with self._changed:
                streams = sorted(self._dirty, key=lambda stream: stream.kind == "text")  # thoughts before texts
                self._dirty.clear()
                self._waiting = 0
                texts = ["".join(stream.pending) for stream in streams]
                for stream in streams:
                    stream.pending.clear()
            if not streams:
                return
            try:
                self._say(keys=[keys.stream(stream.job) for stream in streams], args=[self._ttl, *(
                    part for stream, text in zip(streams, texts, strict=True)
                    for part in (stream.attempt, stream.sent, stream.kind, text)
                )])
            except OUTAGES:
                with self._changed:
                    for stream, text in zip(streams, texts, strict=True):
                        stream.pending.insert(0, text)
                        self._dirty[stream] = None
                raise
            for stream, text in zip(streams, texts, strict=True):
                stream.sent += len(text)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                if self._closed:
                    return
            try:
                self.flush()
            except redis.RedisError as error:
                _log.warning("streamed text was not written: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _OUTAGE_SECONDS)
            except Exception:  # the other jobs' readers still wait for their text
                _log.exception("streamed text was not written")
            with self._changed:
                self._changed.wait_for(lambda: self._waiting >= FLUSH_TOKENS or self._closed, FLUSH_SECONDS)
