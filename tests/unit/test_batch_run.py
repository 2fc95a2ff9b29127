"""Batches of OpenAI requests against a real server; `Answerer` plays the worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from answering import Answerer
from test_batch_input import BODY, line, write

from sailq.producer import waiting
from sailq.producer.captioning import window
from sailq.producer.client import Client, JobHandle
from sailq.producer.openai_api import batch_run
from sailq.producer.openai_api.batch_input import BatchInput
from sailq.producer.openai_api.batch_output import unanswered
from sailq.producer.openai_api.batch_run import BatchRun
from sailq.producer.openai_api.errors import ApiError
from sailq.shared.errors import BadRequest

Run = Callable[..., list[str]]
BAD = {**BODY, "n": 2}


@pytest.fixture(autouse=True)
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(batch_run, "Readers", lambda **options: None)  # threads read: a child takes a second to start


@pytest.fixture
def run(client: Client, connection: redis.Redis, answerer: Answerer, tmp_path: Path) -> Run:
    """Answers lines as far as `most` rows, and returns the custom_ids of the new rows; each answer is its job's id."""

    def start(*lines: Any, most: int | None = None, **options: Any) -> list[str]:
        def answer() -> None:
            for key in connection.scan_iter("rq:job:*"):
                job = key.decode().removeprefix("rq:job:")
                answerer.answer(job, job)

        new = []
        with (
            closing(BatchInput(write(tmp_path / "in.jsonl", *lines))) as given,
            closing(BatchRun(given, tmp_path / "out.jsonl", window=1, wait=0.0, **options)) as batch,
            closing(batch.run(client, idle=answer)) as rows,
        ):
            for row in rows:
                new.append(row.custom_id)
                if len(new) == most:
                    break
        return new

    return start


def told(tmp_path: Path) -> dict[str, Any]:
    rows = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def test_answered_requests_are_kept_and_failed_and_new_ones_are_asked(run: Run, tmp_path: Path) -> None:
    assert run(line("a"), line("b", BAD), line("c"), most=2) == ["a", "b"]
    before = told(tmp_path)
    assert run(line("c"), line("b", BAD), line("d"), line("a")) == ["c", "b", "d"]
    after = told(tmp_path)
    assert list(after) == ["c", "b", "d", "a"] and after["a"] == before["a"] and after["b"] == before["b"]
    assert run(line("c"), line("b"), line("d"), line("a"), retry=False) == ["b"]  # another request
    assert run(line("c"), line("b"), line("d"), line("a")) == []
    assert [row["response"]["status_code"] for row in told(tmp_path).values()] == [200] * 4


def test_a_failed_request_is_final_without_retry(run: Run) -> None:
    assert run(line("a"), line("b", BAD), retry=False) == ["a", "b"]
    assert run(line("a"), line("b", BAD), retry=False) == []


def test_a_changed_request_is_asked_again_and_its_old_row_stays_until_then(run: Run, tmp_path: Path) -> None:
    run(line("a"), line("b"))
    before = told(tmp_path)
    changed = {**BODY, "seed": 5}
    assert run(line("a", changed), line("b", changed), most=1) == ["a"]
    after = told(tmp_path)
    assert after["b"] == before["b"] and after["a"] != before["a"]
    assert run(line("a", changed), line("b", changed)) == ["b"]


def test_the_row_that_a_dead_run_replaced_is_removed(run: Run, tmp_path: Path) -> None:
    run(line("a", BAD))
    failure = (tmp_path / "out.jsonl").read_text()
    run(line("a"))
    answer = (tmp_path / "out.jsonl").read_text()
    (tmp_path / "out.jsonl").write_text(failure + answer)
    assert run(line("a")) == [] and (tmp_path / "out.jsonl").read_text() == answer


def test_rows_of_another_batch_are_refused_and_stay(run: Run, tmp_path: Path) -> None:
    run(line("a"))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(BadRequest, match="'a'. Choose another --output-file"):
        run(line("b"))
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("row", [
    {"index": 0, "source": "a.mp4"}, {"id": "batch_req_1", "custom_id": "a", "response": None, "error": None},
    {"id": "batch_req_1", "custom_id": 5, "response": {"status_code": 200}, "error": None},
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 400}, "error": None},
    {"id": "batch_req_1", "custom_id": "a", "response": None, "error": "x"},
])
def test_a_file_of_other_rows_is_refused(run: Run, tmp_path: Path, row: Any) -> None:
    (tmp_path / "out.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(BadRequest, match="Line 1 of .* is not a row"):
        run(line("a"))


def test_what_a_request_asks_reaches_its_job(
    run: Run, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []
    submit = client.submit_prepared

    def note(*given: Any, **asked: Any) -> JobHandle:
        submitted.append(asked)
        return submit(*given, **asked)

    monkeypatch.setattr(client, "submit_prepared", note)
    body = {**BODY, "priority": "high", "metadata": {"camera": 3}, "max_tokens": 7, "conversation": "c"}
    run(line("a", body))
    (asked,) = submitted
    assert (asked["priority"], asked["options"].max_new_tokens, asked["model"]) == ("high", 7, "m")
    assert (asked["conversation"], asked["metadata"]) == ("c", {"camera": 3})
    response = told(tmp_path)["a"]["response"]
    assert response["body"]["choices"][0]["message"]["content"] == response["request_id"].removeprefix("req_")


def test_the_arguments_of_a_request_can_be_bounded(run: Run, tmp_path: Path) -> None:
    def bound(asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("priority") == "high":
            raise ApiError(403, "Not with this key.", code="forbidden")
        return {**asked, "priority": "high"}

    run(line("a", {**BODY, "priority": "high"}), line("b"), arguments=bound)
    assert [row["response"]["status_code"] for row in told(tmp_path).values()] == [403, 200]


def test_a_request_that_the_batch_did_not_come_to(tmp_path: Path) -> None:
    with closing(BatchInput(write(tmp_path / "in.jsonl", line("a")))) as given:
        row = unanswered(given.lines[0], "batch_expired", "Too late.")
    assert row.failed and row.reason == "Too late."
    assert json.loads(row.data) == {"id": given.lines[0].id, "custom_id": "a", "response": None,
                                    "error": {"code": "batch_expired", "message": "Too late."}}
