"""What a record of RQ's may do to those who read it."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import redis
from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.rqjob import FUNCTION, LockedJob, Serializer

DATE = b"2026-01-01T00:00:00.0Z"
CALL = Serializer.dumps([FUNCTION, None, ["a"], {}])


def job(**fields: bytes) -> LockedJob:
    """The job "a" as its record gives it: the one that sailq calls, but for `fields`."""
    restored = LockedJob("a", connection=redis.Redis())
    restored.restore({name.encode(): value for name, value in {"data": CALL, "created_at": DATE, **fields}.items()})
    return restored


@pytest.mark.parametrize("end", [None, -100])  # RQ unpacks what is cut off, too, before it says so
def test_a_record_that_unpacks_to_much_is_refused_before_it_does(end: int | None) -> None:
    bomb = zlib.compress(bytes(64 << 20))[:end]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="unpacks"):
            job(data=bomb)
        job(exc_info=bomb, result=bomb, meta=bomb)  # of no use here
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_of_a_record_nothing_is_taken_that_makes_rq_act() -> None:
    foreign = job(
        success_callback_name=b"os.system", failure_callback_name=b"os.system", stopped_callback_name=b"os.system",
        webhooks=b'[{"url": "http://127.0.0.1"}]', repeats_left=b"1000000", repeat_intervals=b"[0]",
        rate_limit_key=b"k", rate_limit_concurrency=b"0", group_id=b"g", meta=b"x", retry_intervals=b"[1e400]",
    )
    assert foreign.webhooks == [] and foreign.repeats_left is None and foreign.rate_limit_key is None
    assert foreign.group_id is None and foreign.meta == {} and not foreign.retry_intervals
    assert foreign._success_callback_name is foreign._failure_callback_name is foreign._stopped_callback_name is None


@pytest.mark.parametrize("fields", [
    {"created_at": b"yesterday"}, {"origin": b"\xff"}, {"status": b"odd"}, {"timeout": b"x"}, {"ttl": b"9" * 5000},
    {"result_ttl": b"9" * 30}, {"failure_ttl": b"-99999999999"}, {"retries_left": b"1e9"},
    {"enqueue_at_front": b"\xff"}, {"dependency_ids": b"7"}, {"dependency_ids": b'["a", "b"]'},
    {"dependency_ids": b"[7]"},
    {"dependency_ids": b"[" * 100_000}, {"dependency_ids": b"\xff"}, {"worker_name": b"\xff"},
])
def test_a_record_that_rq_did_not_write_is_refused(fields: dict[str, bytes]) -> None:
    with pytest.raises(BadRequest):
        job(**fields)


@pytest.mark.parametrize("call", [
    ["os.system", None, ["touch x"], {}], [None, None, ["a"], {}], [FUNCTION, "an.instance", ["a"], {}],
    [FUNCTION, None, ["another job's"], {}], [FUNCTION, None, [], {}], [FUNCTION, None, ["a", "a"], {}],
    [FUNCTION, None, "a", {}], [FUNCTION, None, ["a"], {"timeout": 1}], [FUNCTION, None, ["a"], None],
    [np.ones(3), None, ["a"], {}], [FUNCTION, None, np.ones(3), {}], [FUNCTION, None, ["a"], np.ones(3)],
    [FUNCTION, None, [np.ones(3)], {}],
])
def test_another_call_than_the_jobs_own_is_refused(call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LockedJob, "registered", print)
    assert job().func is print
    with pytest.raises((BadRequest, Unsupported)):
        _ = job(data=Serializer.dumps(call)).func
