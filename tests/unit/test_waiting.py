"""The client's waiting and streaming against a real server; `Answerer` plays the worker."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis
from answering import Answerer

from sailq.producer import replies, waiting
from sailq.producer.client import Client
from sailq.producer.waiting import Waiter
from sailq.shared import keys
from sailq.shared.errors import NotFound, WaitTimeout

HELLO = [{"role": "user", "content": "Hello"}]


def test_wait_returns_the_result_that_comes_later(
    client: Client, answerer: Answerer, later: Callable[..., None]
) -> None:
    job = client.submit(HELLO).job
    assert client.result(job) is None
    later(answerer.answer, job, "Hi")
    assert client.wait(job, 60).text == "Hi"


def test_as_completed_gives_each_job_when_it_is_done(client: Client, answerer: Answerer) -> None:
    jobs = [client.submit(HELLO).job for _ in range(3)]
    answerer.answer(jobs[2], "2")
    completed = client.as_completed(jobs, 10)
    assert next(completed)[0] == jobs[2]
    answerer.answer(jobs[0], "0")
    assert next(completed)[0] == jobs[0]
    answerer.answer(jobs[1], "1")
    assert [(job, result.text) for job, result in completed] == [(jobs[1], "1")]


def test_a_stream_restarts_when_another_worker_takes_over(client: Client, answerer: Answerer) -> None:
    job = client.submit(HELLO, stream=True).job
    answerer.claim(job)
    answerer.say(job, 0, "lost")
    chunks = client.stream(job, 60)
    assert next(chunks).text == "lost"
    answerer.claim(job)
    answerer.say(job, 0, "one ")
    answerer.say(job, 4, "two")
    answerer.say(job, 4, "two")  # written twice, after a lost reply
    answerer.finish(job, "one two")
    rest = list(chunks)
    assert "".join(chunk.text for chunk in rest) == "one two"
    assert [chunk.restarted for chunk in rest] == [True, False]


def test_a_stream_that_ended_is_read_whole(client: Client, answerer: Answerer) -> None:
    job = client.submit(HELLO, stream=True).job
    answerer.claim(job)
    answerer.say(job, 0, "all of it")
    answerer.finish(job, "all of it")
    assert [chunk.text for chunk in client.stream(job, 60)] == ["all of it"]


def test_a_wait_times_out(client: Client) -> None:
    job = client.submit(HELLO).job
    with pytest.raises(WaitTimeout, match="0.2 s"):
        client.wait(job, 0.2)
    with pytest.raises(WaitTimeout):
        next(client.stream(job, 0.2))


def test_unknown_jobs_are_not_found(client: Client) -> None:
    for call in (client.result, client.wait, client.cancel, lambda job: next(client.stream(job))):
        with pytest.raises(NotFound, match="no-such-job"):
            call("no-such-job")


def test_a_job_that_disappears_is_noticed(
    client: Client, connection: redis.Redis, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (replies, waiting):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.4)
    job = client.submit(HELLO).job
    later(connection.delete, keys.job(job))
    with pytest.raises(NotFound):
        client.wait(job)


def test_a_waiter_follows_a_changing_set(client: Client, connection: redis.Redis, answerer: Answerer) -> None:
    waiter = Waiter(connection, client.inbox)
    assert not waiter.poll(0.01).ended
    first, second = client.submit(HELLO).job, client.submit(HELLO).job
    waiter.add(first)
    waiter.add("no-such-job")
    ((vanished, error),) = waiter.poll(0.01).ended
    assert vanished == "no-such-job" and isinstance(error, NotFound)
    answerer.answer(first, "1")
    assert [job for job, _ in waiter.poll(1).ended] == [first]
    waiter.add(second)
    assert len(waiter) == 1 and not waiter.poll(0.01).ended


def test_an_existing_result_is_returned_at_once(
    client: Client, answerer: Answerer, connection: redis.Redis, redis_url: str
) -> None:
    job = client.submit(HELLO).job
    answerer.answer(job, "Hi")
    began = time.monotonic()
    assert client.wait(job, 60).text == "Hi" and list(client.stream(job, 60)) == []
    with Client(redis_url) as another:
        assert another.wait(job, 60).text == "Hi" and list(another.stream(job, 60)) == []
    assert time.monotonic() - began < replies.LOOK_SECONDS / 2


def test_a_wait_ends_for_another_client_and_for_one_without_an_inbox(
    client: Client, answerer: Answerer, connection: redis.Redis, redis_url: str, later: Callable[..., None]
) -> None:
    mine, lost = (client.submit(HELLO).job for _ in range(2))
    answerer.claim(mine)
    with Client(redis_url) as another:
        later(answerer.finish, mine, "Hi")
        assert another.wait(mine, 60).text == "Hi"
    answerer.claim(lost)
    connection.delete(keys.inbox(client.inbox.name))
    later(answerer.finish, lost, "Hi")
    assert client.wait(lost, 60).text == "Hi"


def test_text_that_comes_between_a_read_and_a_look_is_not_lost(
    client: Client, answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(HELLO, stream=True).job
    answerer.claim(job)
    waiter = Waiter(client.connection, client.inbox, [job], text=True)
    assert not waiter.poll(0.01).ended
    read = client.connection.xread

    def late(*arguments: object, **options: object) -> object:
        reply = read(*arguments, **options)
        if not client.result(job):
            answerer.say(job, 0, "all of it")
            answerer.finish(job, "all of it")
        return reply

    monkeypatch.setattr(client.connection, "xread", late)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.01)
    news = waiter.poll(0.01)
    assert [chunk.text for chunk in news.chunks[job]] == ["all of it"] and [name for name, _ in news.ended] == [job]
