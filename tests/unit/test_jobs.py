"""Ids, settings and the connection's errors."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from sailq.shared.connection import ServerClock, connect, server_errors, without_password
from sailq.shared.errors import BadRequest, ServerUnavailable
from sailq.shared.jobs import IdFactory
from sailq.shared.settings import Settings


def test_ids_sort_by_time_and_strictly_increase_within_one_factory() -> None:
    ids = IdFactory()
    made = [ids.new(now) for now in (100.0, 100.0, 100.0005, 99.0, 101.0)]
    assert made == sorted(made) and len(set(made)) == 5
    assert IdFactory().new(200.0) > made[-1]


def test_ids_of_many_threads_differ() -> None:
    ids, made = IdFactory(), []
    threads = [threading.Thread(target=lambda: made.extend(ids.new(5.0) for _ in range(200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1600


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAILQ_REDIS_URL", "unix:///tmp/x.sock")
    monkeypatch.setenv("SAILQ_RESULT_TTL", "7")
    assert (Settings().redis_url, Settings().result_ttl) == ("unix:///tmp/x.sock", 7)


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "", "redis://h:notaport"])
def test_a_url_that_is_not_a_servers_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="URL"):
        connect(url)


def test_an_unreachable_server_is_one_readable_sentence() -> None:
    connection = connect("redis://127.0.0.1:1/0", retries=0)
    with pytest.raises(ServerUnavailable, match="127.0.0.1:1"), server_errors(connection):
        connection.ping()


def test_the_servers_time_is_kept_when_this_machines_clock_is_set(
    connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, wall, steady = ServerClock(connection), time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() - 1e9)  # a machine without a clock battery starts at an old date
    assert clock.now() == pytest.approx(wall(), abs=1)
    monkeypatch.setattr(time, "time", wall)
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 61)
    assert clock.now() == pytest.approx(wall(), abs=1)


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://u:s3cret@h:1/0", "redis://u:***@h:1/0"),
    ("redis://:p@s3cret@h/0", "redis://:***@h/0"),
    ("unix:///s?db=0&password=s3cret", "unix:///s?db=0&password=***"),
    ("unix:///s?db=0", "unix:///s?db=0"),
    ("rediss://u@h:1/0", "rediss://u@h:1/0"),
])
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", [
    "http://u:s3cret@h", "u:s3cret@h:6379", "redis://u:s3cret/x@h", "redis://u:12/s3cret@h", "redis://u:p@s3cret#x@h",
    "redis://u:1?s3cret@h", "redis://u:s3cret@[h", "redis://u:s3cret@h:port", "redis://u:s3cret@h/0?x=1",
    "rediss://u:s3cret@h/0?ssl_cert_reqs=x",
])
def test_a_password_of_an_invalid_url_is_never_shown(url: str) -> None:
    with pytest.raises(BadRequest, match="URL") as refused:
        connect(url)
    assert "s3cret" not in str(refused.value)
