"""A model that thinks, through a real server and a real worker: clients, commands and the gateway."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from commands import invoke
from gateways import gateway_thread
from thinking import ANSWER, QUESTION, THOUGHT, thinking_model
from transformers import AutoTokenizer

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.producer.replies import Chunk
from sailq.shared import keys, terminal
from sailq.shared.connection import connect
from sailq.shared.workers import live_workers

NAME = "thinking"
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_model(tmp_path_factory.mktemp("models") / NAME)


@pytest.fixture(scope="module")
def url(server_url: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database that a worker with the model serves."""
    url = f"{server_url}?db=5"
    command = sailq_command("worker", "--redis-url", url, "--threads", "1", "--model", str(model))
    worker = ManagedProcess("worker", command, tmp_path_factory.mktemp("worker") / "worker.log")
    try:
        with connect(url) as connection:
            worker.wait_until(lambda: worker.pid in {info.pid for info in live_workers(connection)}, 90)
        yield url
    finally:
        worker.stop()


@pytest.fixture
def thinker(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def joined(chunks: list[Chunk]) -> tuple[str, str]:
    """The thought and the text of chunks, each of which has one of them, the thought first."""
    assert all((chunk.reasoning == "") != (chunk.text == "") for chunk in chunks)
    assert [chunk.text != "" for chunk in chunks] == sorted(chunk.text != "" for chunk in chunks)
    return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)


def test_a_result_has_thought_and_answer_apart(thinker: Client) -> None:
    result = thinker.wait(thinker.submit(ASKED, model=NAME).job, 60)
    assert (result.reasoning, result.text, result.finish_reason) == (THOUGHT, ANSWER, "stop")
    assert result.usage.reasoning_tokens == 3 and result.usage.completion_tokens == 9


def test_a_stream_tells_which_kind_each_piece_is(thinker: Client, url: str) -> None:
    handle = thinker.submit(ASKED, model=NAME, stream=True)
    assert joined(list(thinker.stream(handle.job, 60))) == (THOUGHT, ANSWER)

    async def listen() -> list[Chunk]:
        async with AsyncClient(url) as client:
            job = await client.submit(ASKED, model=NAME, stream=True)
            return [chunk async for chunk in client.stream(job.job, 60)]

    assert joined(asyncio.run(listen())) == (THOUGHT, ANSWER)


def test_a_listener_that_knows_no_thoughts_reads_the_answer_alone(thinker: Client) -> None:
    """It reads the fields attempt, at and text, and skips entries that lack one of them."""
    handle = thinker.submit(ASKED, model=NAME, stream=True)
    thinker.wait(handle.job, 60)
    entries = [fields for _, fields in thinker.connection.xrange(keys.stream(handle.job)) if b"end" not in fields]
    known = [entry for entry in entries if b"text" in entry]
    assert all(set(entry) == {b"attempt", b"at", b"text"} for entry in known) and len(known) < len(entries)
    assert b"".join(entry[b"text"] for entry in known).decode() == ANSWER
    assert [int(entry[b"at"]) for entry in known][0] == 0


def test_a_thought_that_takes_all_tokens(thinker: Client, url: str) -> None:
    handle = thinker.submit(ASKED, model=NAME, stream=True, options={"max_new_tokens": 2})
    assert joined(list(thinker.stream(handle.job, 60))) == ("There is", "")
    result = thinker.wait(handle.job, 60)
    assert (result.reasoning, result.text, result.finish_reason) == ("There is", "", "length")
    done = invoke("ask", "--prompt", QUESTION, "--model", NAME, "--max-new-tokens", 2, url=url)
    assert done.returncode == 0 and done.stdout == "\n" and "the thought took all tokens" in done.stderr


def test_a_later_turn_is_prompted_without_the_thought(thinker: Client, model: Path) -> None:
    """As Qwen3-VL's published template does."""
    first = thinker.submit(ASKED, model=NAME, conversation="talk")
    assert thinker.wait(first.job, 60).reasoning == THOUGHT
    second = thinker.wait(thinker.submit(ASKED, model=NAME, conversation="talk").job, 60)
    said = [*ASKED, {"role": "assistant", "content": ANSWER}, *ASKED]
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    tokens = AutoTokenizer.from_pretrained(model)(prompt, add_special_tokens=False)["input_ids"]
    assert second.usage.prompt_tokens == len(tokens)
    assert [turn.text for turn in thinker.history("talk")] == [ANSWER, second.text]


def test_ask_leaves_the_thought_out_of_a_pipe_and_puts_it_into_json(url: str) -> None:
    asked = ("ask", "--prompt", QUESTION, "--model", NAME)
    for stream in ((), ("--stream",)):
        done = invoke(*asked, *stream, url=url)
        assert done.returncode == 0 and done.stdout.strip("\n") == ANSWER
    row = json.loads(invoke(*asked, "--json", url=url).stdout)
    assert (row["reasoning"], row["text"]) == (THOUGHT, ANSWER)
    lines = [json.loads(line) for line in invoke(*asked, "--json", "--stream", url=url).stdout.splitlines()]
    assert "".join(line.get("reasoning", "") for line in lines[:-1]) == THOUGHT
    assert "".join(line.get("chunk", "") for line in lines[:-1]) == ANSWER
    assert (lines[-1]["reasoning"], lines[-1]["text"]) == (THOUGHT, ANSWER)


def test_a_terminal_shows_the_thought_dimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    printer = terminal.AnswerPrinter()
    for piece in ("There is", " no"):
        printer.thought(piece)
    for piece in (" in", " this"):
        printer.text(piece)
    assert sys.stdout.getvalue() == "\x1b[2mThere is\x1b[0m\x1b[2m no\x1b[0m\n\n in this"  # type: ignore[attr-defined]


def test_caption_rows_have_the_thought(url: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(_PICTURE)
    out = tmp_path / "out.jsonl"
    done = invoke("caption", tmp_path / "in", "--out", out, "--prompt", QUESTION, "--model", NAME, url=url)
    assert done.returncode == 0, done.stderr
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert row["reasoning"] and row["metrics"]["usage"]["reasoning_tokens"] > 0


def test_openai_clients_find_the_thought_in_vllms_fields(url: str) -> None:
    with gateway_thread(url) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        asked: dict[str, Any] = {"model": NAME, "messages": ASKED}
        whole = client.chat.completions.create(**asked)
        message = whole.choices[0].message
        assert (message.content, message.reasoning, message.reasoning_content) == (  # type: ignore[attr-defined]
            ANSWER, THOUGHT, THOUGHT
        )
        assert whole.usage is not None and whole.usage.completion_tokens_details is not None
        assert whole.usage.completion_tokens_details.reasoning_tokens == 3

        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        thoughts = [delta.to_dict().get("reasoning", "") for delta in deltas]
        assert "".join(map(str, thoughts)) == THOUGHT
        assert thoughts == [delta.to_dict().get("reasoning_content", "") for delta in deltas]
        assert "".join(delta.content or "" for delta in deltas) == ANSWER
        assert deltas[0].role == "assistant"

        cut = client.chat.completions.create(**asked, max_completion_tokens=2).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("", "length")
        assert cut.message.reasoning == "There is"  # type: ignore[attr-defined]

        chosen = client.chat.completions.create(**asked, extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
        assert chosen.choices[0].message.content in {"red", "blue"}

        said = [*ASKED, {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT, "reasoning_content": THOUGHT}]
        without = [*ASKED, {"role": "assistant", "content": ANSWER}]
        used = [client.chat.completions.create(**{**asked, "messages": [*turns, *ASKED]}).usage
                for turns in (said, without)]
        assert used[0] is not None and used[1] is not None and used[0].prompt_tokens == used[1].prompt_tokens


def _png() -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (100, 100), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


_PICTURE = _png()
