"""Clients of OpenAI's API work when their base_url and model are changed: openai, LangChain, npm's openai and curl."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import openai
import pytest
from gateways import Gateway, gateway_thread
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai_media import asked
from pydantic import BaseModel, Field

MODEL = "sailq-tiny"
SECONDS = 120


@pytest.fixture(scope="module")
def openai_client(common_gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{common_gateway.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("task", ["image", "images", "video", "follow_up", "text"])
def test_openai_answers_what_the_media_show(
    openai_client: openai.OpenAI, tmp_path: Path, task: str, number: int
) -> None:
    question = asked(task, tmp_path, number)
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=question.messages, extra_body=question.body  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content == question.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )


def test_openai_streams_the_same_text(openai_client: openai.OpenAI, tmp_path: Path) -> None:
    question = asked("video", tmp_path)
    chunks = list(openai_client.chat.completions.create(
        model=MODEL, messages=question.messages, extra_body=question.body,  # type: ignore[arg-type]
        stream=True, stream_options={"include_usage": True},
    ))
    *pieces, last = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == question.answer
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert not last.choices and last.usage is not None and last.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


class Seen(BaseModel):
    shape: Literal["circle", "square", "triangle", "star", "cross", "ring"]
    sides: int
    tags: Annotated[list[Literal["big", "small"]], Field(max_length=2)]


def test_openai_parses_answers_into_pydantic_models(openai_client: openai.OpenAI, tmp_path: Path) -> None:
    question = asked("image", tmp_path)
    answer = openai_client.chat.completions.parse(
        model=MODEL, messages=question.messages, response_format=Seen,  # type: ignore[arg-type]
        extra_body=question.body, max_completion_tokens=200,
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Seen) and parsed.shape in question.answer


def test_openai_gets_a_json_object(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], response_format={"type": "json_object"},
        max_completion_tokens=300, temperature=0.0,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    assert (answer.choices[0].message.content or "").startswith("{")


def test_openai_gets_one_of_vllms_choices(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "How many sides does a square have?"}],
        extra_body={"structured_outputs": {"choice": ["three", "four"]}},
    )
    assert answer.choices[0].message.content in {"three", "four"}
    assert answer.choices[0].finish_reason == "stop"


def test_openai_lists_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == [MODEL]
    assert openai_client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (openai.NotFoundError, {"model": "no-such-model"}),
        (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (openai.BadRequestError, {"logprobs": True}),
        (openai.BadRequestError, {"n": 2}),
        (openai.BadRequestError, {"max_tokens": 0}),
    ],
    ids=["model", "tools", "logprobs", "n", "max_tokens"],
)
def test_openai_gets_its_own_errors(
    openai_client: openai.OpenAI, error: type[openai.APIStatusError], changed: dict
) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **changed}
    with pytest.raises(error) as raised:
        openai_client.chat.completions.create(**request)
    assert raised.value.param == next(iter(changed)) and raised.value.type == "invalid_request_error"


def test_openai_runs_a_batch(common_worker: str, tmp_path: Path) -> None:
    question = asked("image", tmp_path)
    requests = [
        {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": model, "messages": question.messages, **question.body}}
        for number, model in enumerate([MODEL, MODEL, "no-such-model"])
    ]
    with (
        gateway_thread(common_worker, files=tmp_path / "files") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client,
    ):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "7"}
        )
        until = time.monotonic() + SECONDS
        while batch.status not in {"completed", "failed", "expired", "cancelled"}:
            assert time.monotonic() < until
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed" and batch.metadata == {"night": "7"}
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
        assert batch.output_file_id and batch.error_file_id
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert [row["custom_id"] for row in answers] == ["request-0", "request-1"]
        assert {row["response"]["body"]["choices"][0]["message"]["content"] for row in answers} == {question.answer}
        (failure,) = client.files.content(batch.error_file_id).text.splitlines()
        assert json.loads(failure)["response"]["status_code"] == 404
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert client.files.delete(file.id).deleted


def test_langchain_sees_an_image(common_gateway: Gateway, tmp_path: Path) -> None:
    question = asked("image", tmp_path)
    model = ChatOpenAI(
        model=MODEL, base_url=f"{common_gateway.url}/v1", api_key="none",  # type: ignore[arg-type]
        extra_body=question.body, timeout=SECONDS,
    )
    message = HumanMessage(content=question.messages[0]["content"])
    assert model.invoke([message]).content == question.answer
    assert "".join(str(chunk.content) for chunk in model.stream([message])) == question.answer


def test_curl_as_openais_documentation_shows_it(common_gateway: Gateway, tmp_path: Path) -> None:
    question = asked("image", tmp_path)
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": MODEL, "messages": question.messages, **question.body}))
    command = [
        "curl", "--silent", "--show-error", f"{common_gateway.url}/v1/chat/completions",
        "-H", "Content-Type: application/json", "-H", "Authorization: Bearer none", "-d", f"@{body}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == question.answer


@pytest.mark.proof
def test_npms_openai(common_gateway: Gateway, tmp_path: Path) -> None:
    question = asked("image", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    subprocess.run(["npm", "install", "--silent", "openai"], cwd=tmp_path, check=True, timeout=SECONDS)
    (tmp_path / "ask.js").write_text("""
import OpenAI from "openai";
import { readFileSync } from "node:fs";
const { url, model, messages, body } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url, apiKey: "none" });
const whole = await client.chat.completions.create({ model, messages, ...body });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, ...body, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
let refused = 0;
try {
  await client.chat.completions.create({ model: "no-such-model", messages });
} catch (error) {
  refused = error.status;
}
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, refused }));
""")
    asking = {"url": f"{common_gateway.url}/v1", "model": MODEL, "messages": question.messages, "body": question.body}
    done = subprocess.run(["node", "ask.js"], cwd=tmp_path, input=json.dumps(asking), capture_output=True, text=True,
                          timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"whole": question.answer, "streamed": question.answer, "refused": 404}


def test_the_gateway_does_not_need_the_workers_packages(common_gateway: Gateway) -> None:
    """An operator installs sailq[gateway] alone."""
    code = (
        "import sys; import sailq.producer.gateway.app; "
        "print(sorted({'onnxruntime', 'tokenizers', 'torch', 'llguidance'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "[]\n", done.stderr
