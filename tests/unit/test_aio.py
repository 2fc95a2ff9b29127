"""The asyncio client against a real server; `Answerer` plays the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import redis
from answering import Answerer

from sailq.producer import stream_listener
from sailq.producer.aio import MAX_CONNECTIONS, AsyncClient
from sailq.producer.client import Client, JobHandle
from sailq.shared import keys
from sailq.shared.errors import BadMedia, NotFound, ServerUnavailable, WaitTimeout
from sailq.shared.jobs import Result

T = TypeVar("T")

HELLO = [{"role": "user", "content": "Hello"}]


def within(redis_url: str, story: Callable[[AsyncClient], Awaitable[T]], seconds: float = 20) -> T:
    async def run() -> T:
        async with AsyncClient(redis_url) as client:
            return await asyncio.wait_for(story(client), seconds)

    return asyncio.run(run())


def test_wait_returns_the_result_that_comes_later(redis_url: str, answerer: Answerer) -> None:
    async def story(client: AsyncClient) -> Result:
        handle = await client.submit(HELLO)
        assert await client.result(handle.job) is None
        waiting = asyncio.create_task(client.wait(handle.job, 60))
        await asyncio.sleep(0.1)
        answerer.answer(handle.job, "Hi")
        return await waiting

    assert within(redis_url, story).text == "Hi"


def test_wait_returns_at_once_when_the_result_is_there(redis_url: str, answerer: Answerer) -> None:
    async def story(client: AsyncClient) -> Result:
        handle = await client.submit(HELLO)
        answerer.answer(handle.job, "Hi")
        return await client.wait(handle.job, 60)

    assert within(redis_url, story, seconds=3).text == "Hi"


def test_a_job_joins_while_another_is_waited_for(redis_url: str, answerer: Answerer) -> None:
    """The one connection is blocked on the first job; the second must not wait until that ends."""

    async def story(client: AsyncClient) -> list[str]:
        first, second = await client.submit(HELLO), await client.submit(HELLO)
        slow = asyncio.create_task(client.wait(first.job))
        await asyncio.sleep(0.2)
        answerer.answer(second.job, "second")
        quick = await asyncio.wait_for(client.wait(second.job), 2)
        answerer.answer(first.job, "first")
        return [quick.text, (await asyncio.wait_for(slow, 2)).text]

    assert within(redis_url, story) == ["second", "first"]


def test_stream_gives_the_text_as_it_comes_and_each_reader_all_of_it(redis_url: str, answerer: Answerer) -> None:
    async def read(client: AsyncClient, job: str) -> list[str]:
        return [chunk.text async for chunk in client.stream(job, 60)]

    async def story(client: AsyncClient) -> tuple[list[str], list[str]]:
        handle = await client.submit(HELLO, stream=True)
        answerer.claim(handle.job)
        answerer.say(handle.job, 0, "one ")
        early = asyncio.create_task(read(client, handle.job))
        await asyncio.sleep(0.2)
        late = asyncio.create_task(read(client, handle.job))
        await asyncio.sleep(0.2)
        answerer.say(handle.job, 4, "two")
        answerer.finish(handle.job, "one two")
        return await early, await late

    early, late = within(redis_url, story)
    assert early == ["one ", "two"]
    assert "".join(late) == "one two"


def test_as_completed_gives_each_job_when_it_is_done(redis_url: str, answerer: Answerer) -> None:
    async def story(client: AsyncClient) -> list[int]:
        jobs = [(await client.submit(HELLO)).job for _ in range(3)]
        to_answer = [2, 0, 1]
        answerer.answer(jobs[2], "2")
        seen = []
        async for job, result in client.as_completed(jobs, 10):
            assert job == jobs[int(result.text)]
            seen.append(int(result.text))
            for number in to_answer[len(seen) : len(seen) + 1]:
                answerer.answer(jobs[number], str(number))
        return seen

    assert within(redis_url, story) == [2, 0, 1]


@pytest.mark.proof
def test_many_waits_need_few_connections(redis_url: str, connection: redis.Redis) -> None:
    count = 500
    before = int(connection.info("clients")["connected_clients"])
    with Client(redis_url) as client:
        handles: list[JobHandle] = [client.submit(HELLO) for _ in range(count)]

    async def story(client: AsyncClient) -> tuple[int, set[str]]:
        waits = [asyncio.create_task(client.wait(handle.job)) for handle in handles]
        await asyncio.sleep(0.3)
        connected = int(connection.info("clients")["connected_clients"]) - before
        answerer = Answerer(connection)
        for number, handle in enumerate(handles):
            answerer.answer(handle.job, str(number))
        return connected, {result.text for result in await asyncio.gather(*waits)}

    connected, texts = within(redis_url, story)
    assert connected <= MAX_CONNECTIONS + 1
    assert texts == {str(number) for number in range(count)}


def test_a_wait_times_out(redis_url: str) -> None:
    async def story(client: AsyncClient) -> None:
        handle = await client.submit(HELLO)
        with pytest.raises(WaitTimeout):
            await client.wait(handle.job, 0.2)
        with pytest.raises(WaitTimeout):
            async for _ in client.stream(handle.job, 0.2):
                pass

    within(redis_url, story)


def test_unknown_jobs_are_not_found(redis_url: str) -> None:
    async def story(client: AsyncClient) -> None:
        for coroutine in (client.result("no-such-job"), client.wait("no-such-job", 60), client.cancel("no-such-job")):
            with pytest.raises(NotFound):
                await coroutine
        with pytest.raises(BadMedia):
            await client.submit([{"role": "user", "content": [{"type": "video", "video": "/no/such.mp4"}]}])
        assert await client.card("no-such-model") is None

    within(redis_url, story)


def test_a_job_that_disappears_is_noticed(
    redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_listener, "LOOK_SECONDS", 0.4)

    async def story(client: AsyncClient) -> None:
        handle = await client.submit(HELLO)
        waiting = asyncio.create_task(client.wait(handle.job))
        await asyncio.sleep(0.2)
        connection.delete(keys.job(handle.job))
        with pytest.raises(NotFound):
            await waiting

    within(redis_url, story)


def test_cancel_and_conversation(redis_url: str, answerer: Answerer) -> None:
    async def story(client: AsyncClient) -> None:
        first = await client.submit(HELLO, conversation="talk")
        answerer.answer(first.job, "Hi")
        second = await client.submit(HELLO, conversation="talk")
        assert (first.turn, second.turn) == (0, 1)
        assert await client.cancel(second.job) == "cancelled"
        assert (await client.wait(second.job, 60)).finish_reason == "cancelled"
        assert await client.conversations() == ["talk"]
        assert [turn.text for turn in await client.history("talk")] == ["Hi"]
        await client.clear("talk")
        assert await client.history("talk") == []

    within(redis_url, story)


def test_an_unreachable_server_is_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    async def story(client: AsyncClient) -> None:
        with pytest.raises(ServerUnavailable):
            await client.wait("job", 60)

    within("unix:///no/such/server.sock", story)


def test_text_that_comes_between_a_read_and_a_look_is_not_lost(
    redis_url: str, answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_listener, "LOOK_SECONDS", 0.01)

    async def story(client: AsyncClient) -> list[str]:
        job = (await client.submit(HELLO, stream=True)).job
        answerer.claim(job)
        read = client.connection.xread

        async def late(*arguments: object, **options: object) -> object:
            reply = await read(*arguments, **options)
            if not await client.result(job):
                answerer.say(job, 0, "all of it")
                answerer.finish(job, "all of it")
            return reply

        monkeypatch.setattr(client.connection, "xread", late)
        return [chunk.text async for chunk in client.stream(job, 60)]

    assert within(redis_url, story) == ["all of it"]
