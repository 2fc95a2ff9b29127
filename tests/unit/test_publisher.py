"""Streamed text on its way to a server that goes away for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sailq.producer.embedded import embedded_server
from sailq.producer.replies import StreamReader
from sailq.shared import keys
from sailq.shared.connection import connect
from sailq.worker.publisher import Publisher, Stream


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    with TemporaryDirectory(prefix="sailq-") as folder:
        yield Path(folder)


def test_text_of_an_outage_is_written_after_it(
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
