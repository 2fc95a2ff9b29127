"""Jobs for null workers, and what must be true of each when all is over."""

from __future__ import annotations

import redis

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.jobs import Message, Result, TextPart
from sailq.shared.media.messages import Prepared


def submit(client: Client, tokens: int, conversation: str | None = None, stream: bool = True) -> str:
    message = Message(role="user", content=(TextPart(text="Hi"),))
    return client.submit_prepared(
        Prepared((message,), {}, 0), conversation=conversation, options={"max_new_tokens": tokens}, stream=stream
    ).job


def server_time(connection: redis.Redis) -> float:
    seconds, microseconds = connection.time()
    return float(seconds + microseconds / 1e6)


def claimed_at(result: Result) -> float:
    """When the attempt that made it began, by the server's clock."""
    assert result.timings.end_to_end is not None and result.timings.queue_wait is not None
    return result.finished_at - result.timings.end_to_end + result.timings.queue_wait


def assert_once(
    client: Client, jobs: list[str], tokens: int, seconds: float, *, all_of_it: bool = True
) -> list[Result]:
    """Waits for each job's result: an answer, its stream's one end, its conversation's one turn; and, if that is
    `all_of_it`, no other's."""
    ended = dict(client.as_completed(jobs, seconds))
    results = [ended[job] for job in jobs]
    for result in results:
        assert result.error is None and result.usage.completion_tokens == tokens, result
        entries = client.connection.xrange(keys.stream(result.job))
        assert not entries or [b"end" in fields for _, fields in entries].count(True) == 1
        assert [turn.job for turn in client.history(result.conversation)].count(result.job) == 1
    assert not all_of_it or len(client.connection.keys(keys.result("*"))) == len(jobs)
    return results
