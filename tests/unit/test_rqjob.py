"""What a record of RQ's may do to those who read it."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
import redis
from rq.job import Job as RQJob
from sailq.shared.errors import BadRequest
from sailq.shared.rqjob import LockedJob, Serializer


@pytest.mark.parametrize("field", ["data", "exc_info"])
@pytest.mark.parametrize("end", [None, -100])  # RQ unpacks what is cut off, too, before it says so
def test_a_record_that_unpacks_to_much_is_refused_before_it_does(
    connection: redis.Redis, field: str, end: int | None
) -> None:
    bomb = zlib.compress(bytes(64 << 20))[:end]
    connection.hset(RQJob.key_for("bomb"), mapping={"data": b"x", "created_at": "2026-01-01T00:00:00.0Z", field: bomb})
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="unpacks"):
            LockedJob.fetch("bomb", connection=connection, serializer=Serializer)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
