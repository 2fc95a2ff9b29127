"""Answers in a form, from the command line, both clients and RQ to a real worker and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from commands import invoke
from jsonschema import Draft202012Validator
from rq import Queue
from schemas import FINITE

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.codec import encode
from sailq.shared.connection import connect
from sailq.shared.errors import Unsupported
from sailq.shared.jobs import ModelCard, Result
from sailq.shared.rqjob import Serializer

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = FINITE["sighting"]
GUIDED: dict[str, Any] = {"structured_outputs": {"json": SCHEMA}, "max_new_tokens": 200}


def fits(text: str) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid(json.loads(text)))


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), "utf-8-sig")
    return file


def test_ask_prints_json_that_fits_the_schema_or_one_of_the_choices(served_url: str, schema: Path) -> None:
    done = invoke("ask", "--prompt", "Hello", "--schema", schema, "--max-new-tokens", 200, url=served_url)
    assert done.returncode == 0 and fits(done.stdout)
    done = invoke("ask", "--prompt", "Hello", "--choice", "red, 蓝色 ,green", "--stream", url=served_url)
    assert done.returncode == 0 and done.stdout.strip() in {"red", "蓝色", "green"}


def test_chat_answers_each_question_in_form(served_url: str) -> None:
    done = invoke("chat", "--choice", "yes,no", stdin="Hello\nAgain\nq\n", url=served_url)
    assert done.returncode == 0 and set(done.stdout.split()) <= {"yes", "no"} and len(done.stdout.split()) == 2


@pytest.mark.proof
def test_caption_writes_rows_in_form_and_resumes_only_with_the_same_form(
    served_url: str, schema: Path, tmp_path: Path
) -> None:
    list(write_samples(7, 2, tmp_path / "samples"))
    out, command = tmp_path / "out.jsonl", ("caption", tmp_path / "samples" / "clips", "--max-new-tokens", 200)
    done = invoke(*command, "--out", out, "--schema", schema, url=served_url)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows and all(fits(row["text"]) for row in rows)
    again = invoke(*command, "--out", out, "--schema", schema, url=served_url)
    assert f"resuming: {len(rows)} of {len(rows)} are done" in again.stderr
    other = invoke(*command, "--out", out, "--choice", "yes,no", url=served_url)
    assert other.returncode == 2 and "options differ" in other.stderr
    done = invoke(*command, "--choice", "yes,no", url=served_url)
    assert {json.loads(line)["text"] for line in done.stdout.splitlines()} <= {"yes", "no"} and done.stdout


@pytest.mark.parametrize("command", ["ask", "chat", "caption"])
@pytest.mark.parametrize(("flags", "why"), [
    (["--schema", "nowhere.json"], "--schema nowhere.json cannot be read: No such file or directory."),
    (["--schema", "{folder}/bad.json"], "is not JSON."),
    (["--schema", "{folder}/list.json"], "must be a JSON schema: an object, or true."),
    (["--schema", "{folder}/latin.json"], "cannot be read: it is not UTF-8 text."),
    (["--schema", "{folder}/ok.json", "--choice", "a"], "--schema and --choice cannot be combined."),
    (["--choice", "a,,b"], "--choice takes texts separated by commas, such as yes,no."),
    (["--choice", "a", "--stop", "b"], "--stop cannot be combined with --schema or --choice."),
])
def test_flags_that_make_no_form_are_usage_errors(
    command: str, flags: list[str], why: str, tmp_path: Path
) -> None:
    for name, content in {"bad": b"{", "list": b"[]", "latin": b'{"a": "\xe9"}', "ok": b"{}"}.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    done = invoke(command, *(flag.format(folder=tmp_path) for flag in flags))
    assert done.returncode == 2 and done.stderr.rstrip().endswith(why) and not done.stdout


@pytest.mark.proof
def test_both_clients_and_rq_get_json_that_fits(served_url: str, eventually: Callable[..., None]) -> None:
    async def story() -> Result:
        async with AsyncClient(served_url) as client:
            handle = await client.submit(HELLO, options=GUIDED)
            return await client.wait(handle.job, 60)

    with Client(served_url) as client, connect(served_url) as connection:
        results = [client.wait(client.submit(HELLO, options=GUIDED).job, 60), asyncio.run(story())]
        job = Queue("sailq3-sailq-tiny", connection=connection, serializer=Serializer).enqueue(
            "sailq.answer", messages=HELLO, options=GUIDED)
        eventually(lambda: job.latest_result() is not None)
        results.append(client.wait(job.id, 60))
    assert [result.finish_reason for result in results] == ["stop"] * 3
    assert all(fits(result.text) for result in results) and len({result.text for result in results}) == 1


@pytest.mark.parametrize(("form", "why"), [
    ({"json": {"uniqueItems": True}}, "The schema has keywords that are not supported: uniqueItems."),
    ({"regex": "("}, "The regex is not valid: unclosed group."),
])
def test_a_form_that_the_worker_cannot_compile_fails_its_job_alone(
    served_url: str, form: dict[str, Any], why: str
) -> None:
    with Client(served_url) as client:
        bad = client.submit(HELLO, options={"structured_outputs": form})
        good = client.submit(HELLO, options=GUIDED)
        result = client.wait(bad.job, 60)
        assert result.error is not None
        assert (result.finish_reason, result.error.code, result.error.message) == ("error", "bad_request", why)
        assert client.wait(good.job, 60).finish_reason == "stop"


def test_a_model_that_gives_no_scores_refuses_at_submission(redis_url: str, connection: redis.Redis) -> None:
    card = ModelCard(name="chip", context=512, min_pixels=784, max_pixels=784 * 64, greedy_only=True)
    connection.set(keys.model("chip"), encode(card))

    async def submit(options: dict[str, Any]) -> None:
        async with AsyncClient(redis_url) as client:
            await client.submit(HELLO, model="chip", options=options)

    with Client(redis_url) as client:
        for options in (GUIDED, {"temperature": 1.0}, {"repetition_penalty": 1.2}):
            with pytest.raises(Unsupported, match="most likely token"):
                client.submit(HELLO, model="chip", options=options)
            with pytest.raises(Unsupported, match="most likely token"):
                asyncio.run(submit(options))
        assert not connection.keys(keys.job("*"))
        client.submit(HELLO, model="chip", options={"max_new_tokens": 3})
        client.submit(HELLO, model="other", options=GUIDED)  # nobody has said anything about this model
