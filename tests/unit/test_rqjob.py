"""Jobs in RQ's format: RQ reads what sailq writes, and sailq reads foreign records or raises typed errors."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import redis
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.results import Result as RQResult

from sailq.shared import keys
from sailq.shared.codec import MAX_RECORD_BYTES
from sailq.shared.errors import BadRequest, CodecError, Unsupported
from sailq.shared.jobs import Failure, FramesPart, GenerationOptions, Job, Message, Result, TextPart
from sailq.shared.rqjob import FUNCTION, Serializer, read_job, record, rq_result

QUEUE = keys.queue("m")
HELLO = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
JOB = Job(
    id="a", conversation="c", turn=2, model="m", deadline=2e9, priority="high", stream=True, submitted_at=1e9,
    messages=(Message(role="user", content=(
        FramesPart(type="video", blob="a" * 64, frames=2, height=28, width=28), TextPart(text="看")
    )),),
    options=GenerationOptions(temperature=0.5, seed=7, stop=("。",)), metadata={"camera": 7, "tags": ["a", None, 1.5]},
)


def call(**arguments: Any) -> bytes:
    return Serializer.dumps([FUNCTION, None, [], {"messages": HELLO, **arguments}])


def stored(fields: Mapping[str, Any], connection: redis.Redis) -> dict[bytes, bytes]:
    """The hash as the server returns it."""
    connection.hset(keys.job("a"), mapping=dict(fields))
    return connection.hgetall(keys.job("a"))  # type: ignore[return-value]


def read(**fields: bytes) -> Job:
    """The job "a" with a good record, but for `fields`."""
    good = {"data": call(), "created_at": b"2026-01-01T00:00:00.0Z"}
    return read_job("a", QUEUE, {name.encode(): value for name, value in {**good, **fields}.items()})


# Records that sailq writes.


def test_a_job_comes_back_as_it_was_written(connection: redis.Redis) -> None:
    fields = stored({**record(JOB, ttl=60), "conversation": "c", "turn": 2}, connection)
    assert read_job("a", QUEUE, fields) == JOB


def test_rq_reads_what_sailq_writes(connection: redis.Redis) -> None:
    connection.hset(keys.job("a"), mapping={**record(JOB, ttl=60), "status": "queued"})
    job = RQJob.fetch("a", connection=connection, serializer=Serializer)
    assert (job.func_name, job.args, job.origin, job.get_status()) == (FUNCTION, [], QUEUE, "queued")
    assert job.kwargs["messages"][0]["content"][1]["text"] == "看" and job.kwargs["metadata"] == JOB.metadata
    assert (job.timeout, job.result_ttl, job.ttl, job.enqueue_at_front) == (-1, 0, 60, True)
    assert job.created_at.timestamp() == job.enqueued_at.timestamp() == JOB.submitted_at


def test_sailq_reads_what_rq_writes(connection: redis.Redis) -> None:
    made = Queue(QUEUE, connection=connection, serializer=Serializer).enqueue(
        FUNCTION, messages=HELLO, options={"max_new_tokens": 5}, metadata={"camera": 3}, job_timeout=30, meta={"a": 1},
    )
    job = read_job(made.id, QUEUE, connection.hgetall(keys.job(made.id)))
    assert (job.id, job.conversation, job.turn, job.model) == (made.id, made.id, 0, "m")
    assert job.messages == (Message(role="user", content=(TextPart(text="Hello"),)),)
    assert job.options.max_new_tokens == 5 and job.metadata == {"camera": 3}
    assert job.submitted_at == pytest.approx(made.created_at.timestamp(), abs=1e-3)


@pytest.mark.parametrize(("error", "kind"), [
    (None, RQResult.Type.SUCCESSFUL),
    (Failure(code="bad_media", message="It cannot be read."), RQResult.Type.SUCCESSFUL),  # a retry would not help
    (Failure(code="internal", message="It broke."), RQResult.Type.FAILED),
])
def test_rq_reads_a_result(error: Failure | None, kind: RQResult.Type, connection: redis.Redis) -> None:
    result = Result(job="a", conversation="c", turn=0, text="yes", finish_reason="error" if error else "stop",
                    error=error, worker="w", finished_at=1e9)
    fields = rq_result(result)
    connection.hset(keys.job("a"), mapping={**record(JOB, ttl=60), "status": "finished"})
    connection.xadd("rq:results:a", dict(zip(fields[::2], fields[1::2], strict=True)))
    job = RQJob.fetch("a", connection=connection, serializer=Serializer)
    latest = job.latest_result()
    assert latest is not None and latest.type == kind and latest.worker_name == "w"
    if kind == RQResult.Type.SUCCESSFUL:
        assert job.return_value() == result.model_dump()
    else:
        assert error and latest.exc_string == error.message


# Records that other programs write.


@pytest.mark.parametrize("end", [None, -100])
def test_a_record_that_unpacks_to_too_much_is_refused_before_unpacking(end: int | None) -> None:
    bomb = zlib.compress(bytes(64 << 20))[:end]
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            read(data=bomb)
        read(exc_info=bomb, result=bomb, meta=bomb)  # not needed here
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_RECORD_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fields", [
    {"success_callback_name": b"os.system"}, {"failure_callback_name": b"os.system"},
    {"stopped_callback_name": b"os.system"}, {"webhooks": b'[{"url": "http://127.0.0.1"}]'}, {"repeats_left": b"9"},
    {"repeat_intervals": b"[0]"}, {"rate_limit_key": b"k"}, {"group_id": b"g"}, {"retries_left": b"1"},
    {"webhooks": b"\xff"}, {"data": Serializer.dumps(["os.system", None, [], {}])},
    {"data": Serializer.dumps([None, None, [], {}])}, {"data": Serializer.dumps([np.ones(3), None, [], {}])},
    {"data": Serializer.dumps(["system", "os", ["true"], {}])},
])
def test_fields_that_rq_would_act_on_are_refused(fields: dict[str, bytes]) -> None:
    with pytest.raises(Unsupported):
        read(**fields)


def test_fields_that_rq_writes_for_every_job_are_accepted(connection: redis.Redis) -> None:
    """RQ's fields for unused features are empty."""
    queue = Queue(QUEUE, connection=connection, serializer=Serializer)
    times = {"ttl": 60, "result_ttl": 60, "failure_ttl": 60}
    made = queue.enqueue(FUNCTION, messages=HELLO, description="x", at_front=True, **times)
    assert read_job(made.id, QUEUE, connection.hgetall(keys.job(made.id))).id == made.id


@pytest.mark.parametrize("call", [
    [FUNCTION, "an.instance", [], {"messages": HELLO}], [FUNCTION, None, ["a"], {"messages": HELLO}],
    [FUNCTION, None, [HELLO], {}], [FUNCTION, None, [], {}], [FUNCTION, None, "", {"messages": HELLO}],
    [FUNCTION, None, [], None], [FUNCTION, None, [], []], [FUNCTION, None, np.ones(3), {"messages": HELLO}],
    [FUNCTION, None, np.ones(0), {"messages": HELLO}], [FUNCTION, None, [], np.ones(3)],
    [FUNCTION, None, [np.ones(3)], {}], [FUNCTION, None, []], [FUNCTION], [], {}, None, 7, "abcd", np.ones(4),
])
def test_a_call_of_another_function_is_refused(call: object) -> None:
    with pytest.raises((BadRequest, Unsupported)):
        read(data=Serializer.dumps(call))


@pytest.mark.parametrize("arguments", [
    {"timeout": 1}, {b"messages": 1, "other": 2}, {"id": "victim"}, {"model": "another"}, {"conversation": "c"},
    {"messages": []}, {"messages": np.ones(3)}, {"options": {"temperature": float("nan")}}, {"deadline": float("inf")},
    {"metadata": {"a": b"\xff"}}, {"priority": "urgent"}, {"version": 99}, {"version": np.ones(1)}, {"version": True},
    {"stream": "yes"},
])
def test_an_argument_that_sailq_does_not_take_is_refused(arguments: dict[Any, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        read(data=Serializer.dumps([FUNCTION, None, [], {"messages": HELLO, **arguments}]))
    assert str(refused.value).isprintable() and str(refused.value).endswith(".")


@pytest.mark.parametrize("fields", [
    {"created_at": b"yesterday"}, {"created_at": b""}, {"created_at": b"\xff"}, {"conversation": b"x:turns\nrq:queue"},
    {"conversation": b"\xff"}, {"conversation": b""}, {"data": b""}, {"data": b"\xff"},
    {"data": bytes(MAX_RECORD_BYTES + 1)},
])
def test_a_record_that_rq_did_not_write_is_refused(fields: dict[str, bytes]) -> None:
    with pytest.raises(BadRequest):
        read(**fields)


@pytest.mark.parametrize("fields", [
    {"turn": b"-1"}, {"turn": b"9" * 5000}, {"turn": "²".encode()}, {"turn": b"\xff"}, {"origin": b"\xff"},
    {"status": b"odd"}, {"timeout": b"x"}, {"ttl": b"9" * 5000}, {"dependency_ids": b"[" * 100_000},
    {"worker_name": b"\xff"}, {"enqueue_at_front": b"\xff"},
])
def test_a_field_that_nobody_needs_changes_nothing(fields: dict[str, bytes]) -> None:
    assert read(**fields) == read()


def test_a_field_without_a_name_changes_nothing() -> None:
    fields = {b"data": call(), b"created_at": b"2026-01-01T00:00:00.0Z"}
    assert read_job("a", QUEUE, {**fields, b"\xff\xfe": b"x"}) == read()
