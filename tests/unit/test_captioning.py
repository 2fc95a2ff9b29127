"""Batches against a real server; `Answerer` plays the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from answering import Answerer

from sailq.producer import waiting
from sailq.producer.captioning import inputs, window
from sailq.producer.captioning.batch import Captioning
from sailq.producer.captioning.inputs import Clip
from sailq.producer.captioning.rowfile import RowFile
from sailq.producer.captioning.rows import CAPTIONS, row_of
from sailq.producer.captioning.window import Request, run_batch
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.errors import BadRequest, NotFound, Unsupported
from sailq.shared.jobs import GenerationOptions
from sailq.shared.terminal import as_line

OPTIONS = GenerationOptions()


@pytest.fixture(autouse=True)
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.2)


def clips(count: int) -> list[Clip]:
    return [Clip(index, f"{index}.mp4", [{"role": "user", "content": f"question {index}"}]) for index in range(count)]


def asked(clip: Clip) -> Request:
    return Request(clip.messages, "m")


def in_flight(connection: redis.Redis) -> list[str]:
    return sorted(key.decode().removeprefix("rq:job:") for key in connection.scan_iter("rq:job:*"))


def test_the_window_bounds_what_is_in_flight(client: Client, connection: redis.Redis, answerer: Answerer) -> None:
    most = 0

    def answer_all() -> None:
        nonlocal most
        jobs = in_flight(connection)
        most = max(most, len(jobs))
        for job in jobs:
            answerer.answer(job, "text")

    done = run_batch(client, clips(10), asked, window=3, idle=answer_all)
    assert sorted(clip.index for clip, *_ in done) == list(range(10))
    assert most == 3


def test_a_bad_clip_is_a_row_at_once_and_stops_nothing(
    client: Client, connection: redis.Redis, answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(messages: Any, **options: Any) -> Any:
        if messages == "crash":
            raise RuntimeError("a decoder's bug")
        return window_prepare(messages, **options)

    window_prepare = window.prepare
    monkeypatch.setattr(window, "prepare", prepare)
    crash, empty = Clip(2, "crash", "crash"), Clip(3, "empty", [])
    rows = run_batch(client, [*clips(2), crash, empty], asked, window=10,
                     idle=lambda: [answerer.answer(job, "text") for job in in_flight(connection)] and None)
    done = [(clip.index, error and error["code"]) for clip, answer, _ in rows for error in [row_of(answer)["error"]]]
    assert sorted(done[:2]) == [(2, "internal"), (3, "bad_request")]
    assert sorted(done[2:]) == [(0, None), (1, None)]


def test_jobs_in_flight_are_cancelled_when_the_caller_stops(
    client: Client, connection: redis.Redis, answerer: Answerer
) -> None:
    rows = run_batch(client, clips(4), asked, window=4,
                     idle=lambda: answerer.answer(in_flight(connection)[0], "text"))
    next(rows)
    assert len(in_flight(connection)) == 3
    rows.close()
    assert not in_flight(connection)
    assert len(list(connection.scan_iter(keys.result("*")))) == 4


def test_a_batch_whose_items_wait_for_room_can_be_ended(client: Client, connection: redis.Redis) -> None:
    full = Client(settings=client.settings.model_copy(update={"max_queued": 1}))
    full.submit([{"role": "user", "content": "x"}], model="m")

    def end() -> None:
        raise Unsupported("The batch ends.")

    with full, pytest.raises(Unsupported):
        list(run_batch(full, clips(2), asked, window=2, idle=end, patience=3600.0))
    assert len(in_flight(connection)) == 1


def test_a_job_that_vanishes_is_a_row(client: Client, connection: redis.Redis) -> None:
    rows = run_batch(client, clips(1), asked, window=1,
                     idle=lambda: connection.flushdb() and None)
    ((_, answer, _),) = rows
    assert isinstance(answer, NotFound)


def test_the_same_request_twice_is_resumed_twice(
    client: Client, connection: redis.Redis, answerer: Answerer, tmp_path: Path
) -> None:
    twins = [Clip(index, "twin", [{"role": "user", "content": "same"}]) for index in range(2)]

    def run() -> Captioning:
        run = Captioning(clips=twins, model="m", options=OPTIONS, window=1, out=tmp_path / "out.jsonl")
        run.start()
        list(run.run(client, idle=lambda: [answerer.answer(job, job) for job in in_flight(connection)] and None))
        return run

    first, second = run(), run()
    assert second.ordered() == first.ordered() and not second.todo
    assert len({row["text"] for row in first.ordered()}) == 2


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/1.PNG", "a.avi", "b/.hidden.mp4", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    prompts = {"video": "V", "image": "I"}
    found = inputs.from_paths([str(tmp_path), str(tmp_path / "b" / "*.mp4"), "gone.mp4"], prompts)
    assert [Path(clip.source).name for clip in found] == ["a.avi", "1.PNG", "2.mp4", "gone.mp4"]
    assert [clip.question for clip in found] == ["V", "I", "V", "V"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="no videos and no images"):
        inputs.from_paths([str(tmp_path / "empty")], prompts)


def test_rows_may_contain_invalid_unicode(tmp_path: Path) -> None:
    row = {"index": 0, "source": "caf\udce9.mp4", "text": "é", "request": "r", "error": None, "finish_reason": "stop"}
    file = RowFile(tmp_path / "out.jsonl", CAPTIONS)
    file.append(row)
    file.finish([row])
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == row
    assert as_line({"a": "é"}) == '{"a": "é"}'
    assert RowFile(tmp_path / "out.jsonl", CAPTIONS).rows == [row]
