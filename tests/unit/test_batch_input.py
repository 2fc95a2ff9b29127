"""Files of OpenAI requests: what is one, and what is told about one that is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sailq.producer.openai_api import batch_input
from sailq.producer.openai_api.batch_input import BatchInput, InvalidInput
from sailq.producer.openai_api.errors import ApiError
from sailq.shared.errors import BadRequest

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def line(custom_id: Any, body: Any = BODY, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


def write(path: Path, *lines: Any) -> Path:
    texts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    path.write_bytes(b"\n".join(texts))
    return path


def test_lines_and_their_bodies(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", b"\xef\xbb\xbf" + json.dumps(line("a")).encode() + b"\r", b"", b"  ",
                 line("é", {"messages": [{"role": "user", "content": "前"}]}), b"")
    given = BatchInput(path, model="n")
    assert [(one.index, one.custom_id, one.model) for one in given.lines] == [(0, "a", "m"), (1, "é", "n")]
    assert given.models == ["m", "n"]
    assert [given.body(one)["messages"][0]["content"] for one in given.lines] == ["x", "前"]
    assert given.body(given.lines[1])["model"] == "n"
    given.close()


def test_the_id_of_a_request_depends_on_its_custom_id_and_its_body_alone(tmp_path: Path) -> None:
    def ids(*lines: Any, model: str | None = None) -> list[str]:
        given = BatchInput(write(tmp_path / "in.jsonl", *lines), model=model)
        given.close()
        return [one.id for one in given.lines]

    first = ids(line("a"), line("b"))
    assert all(one.startswith("batch_req_") for one in first) and len(set(first)) == 2
    shuffled = dict(reversed(line("b", dict(reversed(BODY.items()))).items()))
    assert ids(b" ", shuffled, line("c"), model="other")[0] == first[1]
    assert ids(line("a", {**BODY, "seed": 1}))[0] != first[0]
    unnamed = {"messages": BODY["messages"]}
    assert ids(line("a", unnamed), model="m")[0] == first[0] != ids(line("a", unnamed), model="n")[0]


@pytest.mark.parametrize(("bad", "code", "param"), [
    (b"{", "invalid_json_line", None),
    (b"[1]", "invalid_json_line", None),
    (b"\xff\xfe", "invalid_json_line", None),
    (b"[" * 10_000, "invalid_json_line", None),
    (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
    (line("b", {**BODY, "temperature": float("nan")}), "invalid_json_line", None),
    ({"method": "POST", "url": "/v1/chat/completions", "body": {}}, "missing_required_parameter", "custom_id"),
    (line("b", None), "missing_required_parameter", "body"),
    (line(5), "invalid_type", "custom_id"),
    (line("b", "text"), "invalid_type", "body"),
    (line("b", method="GET"), "invalid_method", "method"),
    (line("b", url="/v1/embeddings"), "invalid_url", "url"),
    (line("b", url=["/v1/chat/completions"]), "invalid_url", "url"),
    (line("a"), "duplicate_custom_id", "custom_id"),
])
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, bad: Any, code: str, param: str | None) -> None:
    path = write(tmp_path / "in.jsonl", line("a"), b"", bad, line("z"))
    with pytest.raises(InvalidInput, match="in.jsonl is not a batch: line 3: ") as told:
        BatchInput(path)
    (error,) = told.value.errors
    assert (error.code, error.line, error.param) == (code, 3, param)
    assert error.as_json().keys() == {"code", "line", "message", "param"} and len(str(told.value)) < 600


def test_many_bad_lines(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"line 1: .* line 5: .* And 95 more\.$") as told:
        BatchInput(write(tmp_path / "in.jsonl", *[b"x"] * 1000))
    assert [error.line for error in told.value.errors] == list(range(1, 101))


@pytest.mark.parametrize(("name", "limit", "lines", "code"), [
    ("MAX_LINES", 2, [line("a"), line("b"), line("c")], "too_many_requests"),
    ("MAX_BYTES", 200, [line("a" * 200)], "file_too_large"),
    ("MAX_LINES", 2, [], "empty_file"),
    ("MAX_LINES", 2, [b"", b" "], "empty_file"),
])
def test_a_file_of_a_wrong_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int, lines: list[Any], code: str
) -> None:
    monkeypatch.setattr(batch_input, name, limit)
    with pytest.raises(InvalidInput) as told:
        BatchInput(write(tmp_path / "in.jsonl", *lines))
    assert [(error.code, error.line) for error in told.value.errors] == [(code, None)]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadRequest, match="cannot be read"):
            BatchInput(path)


def test_a_file_that_changes_while_the_batch_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", line("a"), line("b"))
    given = BatchInput(path)
    write(path, line("a", {**BODY, "seed": 1}))
    for one in given.lines:
        with pytest.raises(ApiError, match="was changed"):
            given.body(one)
    given.close()


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Also one that nobody writes to, whose opening would wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadRequest, match="it is a pipe or a device"):
        BatchInput(pipe)
