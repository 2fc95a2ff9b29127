"""Streamed text is written in pipelines, and none is lost during an outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis
from redis.commands.core import Script

from sailq.producer.embedded import embedded_server
from sailq.producer.replies import StreamReader
from sailq.shared import keys
from sailq.shared.connection import connect
from sailq.worker.queue import publisher as publishing
from sailq.worker.queue.publisher import FLUSH_TOKENS, Publisher, Stream


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    with TemporaryDirectory(prefix="sailq-") as folder:
        yield Path(folder)


def test_text_generated_during_an_outage_is_written_after_it(
    folder: Path, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    server = {"unix": folder / "s.sock", "data": folder / "data"}
    stream, reader = Stream("job", 1), StreamReader()
    with connect(f"unix://{server['unix']}", retries=0) as connection:
        publisher = Publisher(connection, 60)
        with embedded_server(**server):
            publisher.put(stream, "before, ")
            eventually(lambda: connection.xlen(keys.stream("job")) == 1)
        publisher.put(stream, "during, ")
        eventually(lambda: "was not written" in caplog.text)
        publisher.put(stream, "after")
        with embedded_server(**server):
            eventually(lambda: stream.sent == len("before, during, after"))
            chunks = reader.feed(connection.xrange(keys.stream("job")))
            publisher.close()
    assert "".join(chunk.text for chunk in chunks) == "before, during, after"


def test_a_thought_is_written_before_its_text_and_read_apart(connection: redis.Redis) -> None:
    text, thought = Stream("job", 1), Stream("job", 1, "reasoning")
    publisher = Publisher(connection, 60)
    publisher.close()  # its thread would flush between two calls
    for stream, piece in ((thought, "one, "), (text, "three"), (thought, "two")):
        publisher.put(stream, piece)
    publisher.flush()
    publisher.put(text, ", four")
    publisher.flush()
    entries = connection.xrange(keys.stream("job"))
    chunks = StreamReader().feed([*entries, *entries])  # as after a lost reply
    assert [(chunk.reasoning, chunk.text) for chunk in chunks] == [("one, two", ""), ("", "three"), ("", ", four")]


def test_another_attempt_begins_thought_and_text_again() -> None:
    def entry(attempt: int, at: int, **said: str) -> tuple[bytes, dict[bytes, bytes]]:
        fields = {"attempt": str(attempt), "at": str(at), **said}
        return b"1-0", {name.encode(): value.encode() for name, value in fields.items()}

    chunks = StreamReader().feed([
        entry(1, 0, reasoning="old "), entry(1, 0, text="old"), entry(2, 0, reasoning="ne"),
        entry(1, 4, reasoning="late"), entry(2, 0, reasoning="new "), entry(2, 0, text="new"),
    ])
    assert [(chunk.reasoning, chunk.text, chunk.restarted) for chunk in chunks] == [
        ("old ", "", False), ("", "old", False), ("ne", "", True), ("w ", "", False), ("", "new", False),
    ]


def test_tokens_of_all_streams_are_sent_together(
    connection: redis.Redis, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token is sent at once, later ones in one command when there are many."""
    monkeypatch.setattr(publishing, "FLUSH_SECONDS", 3600)
    said: list[int] = []
    call = Script.__call__

    def count(script: Script, keys: list[str], args: list[object]) -> object:
        said.append(len(keys))
        return call(script, keys, args)

    monkeypatch.setattr(Script, "__call__", count)
    streams = [Stream(f"job-{number}", 1) for number in range(8)]
    publisher = Publisher(connection, 60)
    publisher.put(streams[0], "first")
    eventually(lambda: streams[0].sent == 5)
    for number in range(FLUSH_TOKENS):
        publisher.put(streams[number % 8], "x")
    eventually(lambda: sum(stream.sent for stream in streams) == 5 + FLUSH_TOKENS)
    publisher.close()
    assert said == [1, 8]
    assert [connection.xlen(keys.stream(stream.job)) for stream in streams] == [2, *[1] * 7]
