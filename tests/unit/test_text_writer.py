"""The text writer on a thread of its own: what it writes, in which order, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from qwen2vl import random_model

from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.engine import Engine, Generation
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.engine.text_writer import Piece, TextWriter
from sailq.worker.runners.logits import Int, Logits

SECONDS = 60


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(random_model(), slots=2, threads=1)


@pytest.fixture
def writer() -> Iterator[TextWriter]:
    writer = TextWriter(lambda latency: None)
    writer.start()
    yield writer
    writer.close()


def started(engine: Engine, tokens: int, stop: tuple[str, ...] = (), hold: threading.Event | None = None) -> Request:
    """A request, whose `on_text` keeps the text, after `hold` is set."""
    options = GenerationOptions(max_new_tokens=tokens, stop=list(stop))
    prepared = engine.prepare([Message(role="user", content=(TextPart(text="Hello"),))], {}, options)
    texts: list[str] = []

    def keep(text: str) -> None:
        assert hold is None or hold.wait(SECONDS)
        texts.append(text)

    request = Request(prepared, options, on_text=keep)
    request.texts = texts  # type: ignore[attr-defined]
    return request


def letters(engine: Engine) -> list[int]:
    """The tokens of a, b and c."""
    tokenizer = engine._chat_tokenizer.tokenizer
    found = [tokenizer.encode(letter) for letter in "abc"]
    assert all(len(tokens) == 1 for tokens in found)
    return [tokens[0] for tokens in found]


def generation(engine: Engine, request: Request) -> Generation:
    return engine.start(request.prepared, request.options, 0)


def test_what_is_put_is_written_in_order_and_the_last_ends_the_request(engine: Engine, writer: TextWriter) -> None:
    request = started(engine, 3)
    made, (a, b, c) = generation(engine, request), letters(engine)
    for token, reason in ((a, None), (b, None), (c, "length")):
        writer.put([Piece(request, made, token, at=1.0, reason=reason)])
        writer.hand_over()
    outcome = request.wait(SECONDS)
    assert (outcome.text, outcome.finish_reason, outcome.usage.completion_tokens) == ("abc", "length", 3)
    assert request.texts == ["a", "b", "c"]  # type: ignore[attr-defined]


def test_tokens_after_a_stop_text_are_dropped(engine: Engine, writer: TextWriter) -> None:
    """The device has computed them while the writer was held up."""
    hold = threading.Event()
    request = started(engine, 9, stop=("b",), hold=hold)
    made, (a, b, c) = generation(engine, request), letters(engine)
    for token in (a, b, c):
        writer.put([Piece(request, made, token, at=1.0)])
        writer.hand_over()
    assert request.outcome is None
    hold.set()
    outcome = request.wait(SECONDS)
    assert (outcome.text, outcome.finish_reason, outcome.usage.completion_tokens) == ("a", "stop", 2)


def test_a_stop_text_that_the_last_token_ends_is_the_reason(engine: Engine, writer: TextWriter) -> None:
    """An incomplete character is text only at the end."""
    tokenizer = engine._chat_tokenizer.tokenizer
    incomplete = next(token for token in range(engine.card.context) if tokenizer.decode([token]) == "\ufffd")
    request = started(engine, 2, stop=("\ufffd",))
    made, (a, _, _) = generation(engine, request), letters(engine)
    writer.put([Piece(request, made, a, at=1.0), Piece(request, made, incomplete, at=2.0, reason="length")])
    writer.hand_over()
    outcome = request.wait(SECONDS)
    assert (outcome.text, outcome.finish_reason) == ("a", "stop")


def test_close_writes_what_was_put(engine: Engine) -> None:
    writer, request = TextWriter(lambda latency: None), started(engine, 2)
    writer.start()
    made, (a, b, _) = generation(engine, request), letters(engine)
    writer.put([Piece(request, made, a, at=1.0)])
    writer.put([Piece(request, made, b, at=2.0, reason="length")])
    writer.close()
    assert request.wait(0).text == "ab"


def test_a_running_scheduler_frees_the_slot_of_a_stopped_answer(engine: Engine) -> None:
    """Its two slots answer four requests, which all end with a text that their first token contains."""
    scheduler = Scheduler(engine)
    probe = started(engine, 1)
    scheduler.submit(probe)
    scheduler.step()
    first = probe.wait(0).text
    assert first
    scheduler.start()
    requests = [started(engine, 50, stop=(first,)) for _ in range(4)]
    for request in requests:
        scheduler.submit(request)
    outcomes = [request.wait(SECONDS) for request in requests]
    assert {(outcome.finish_reason, outcome.text, outcome.usage.completion_tokens) for outcome in outcomes} == {
        ("stop", "", 1)
    }
    scheduler.close()
    assert scheduler.running == 0 and scheduler.alive


def test_text_is_written_while_the_device_computes_the_next_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device waits for the text of the token before."""
    request, decode = started(engine, 3), engine.runner.decode
    lengths: list[int] = []

    def wait_for_text(slots: list[int], tokens: Int, positions: Int, meanwhile: Callable[[], None]) -> Logits:
        def then() -> None:
            meanwhile()
            waited = time.monotonic()
            while request.tokens <= len(lengths) and time.monotonic() < waited + SECONDS:
                time.sleep(0.001)
            lengths.append(request.tokens)

        return decode(slots, tokens, positions, then)

    monkeypatch.setattr(engine.runner, "decode", wait_for_text)
    scheduler = Scheduler(engine)
    scheduler.start()
    scheduler.submit(request)
    assert request.wait(SECONDS).usage.completion_tokens == 3
    scheduler.close()
    assert lengths == [1, 2]


def test_a_writer_that_fails_makes_its_scheduler_fail(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog then ends the process."""
    scheduler = Scheduler(engine)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(TextWriter, "_write_all", lambda writer, pieces: 1 / 0)
    scheduler.start()
    scheduler.submit(started(engine, 50))
    while (thread := scheduler._writer._thread) is None:
        time.sleep(0.01)
    thread.join(SECONDS)
    assert not thread.is_alive() and not scheduler.alive
    scheduler._closing = True
    while scheduler._thread is not None and scheduler._thread.is_alive():  # it waits for the writer
        scheduler._writer._room.put(None)
        scheduler._thread.join(0.1)
