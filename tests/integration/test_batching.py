"""Batching, the vision cache and host work ahead of the device change no answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.producer.samples import write_samples

QUESTIONS = ("What do you see?", "Describe the video.", "请描述视频中的内容", "How many shapes are there?")


@pytest.fixture
def asked(tmp_path: Path) -> list[dict[str, Any]]:
    """Jobs of mixed lengths, greedy and sampled, with at least two questions about each clip."""
    jobs = []
    for number, row in enumerate(write_samples(11, 12, tmp_path)):
        media = [part for part in row["messages"][-1]["content"] if part["type"] != "text"]
        for question in QUESTIONS[: 2 + number % 2]:
            options = {"max_new_tokens": 6 + 7 * (number % 4), "seed": number, "temperature": 0.8 * (number % 2)}
            jobs.append({"messages": [{"role": "user", "content": [*media, {"type": "text", "text": question}]}],
                         "options": options, "base": tmp_path})
    assert sum(len(job["messages"][0]["content"]) > 1 for job in jobs) > 10
    return jobs


@pytest.mark.proof
def test_batched_answers_equal_sequential_ones(
    asked: list[dict[str, Any]], client: Client, start_worker: Callable[..., ManagedProcess]
) -> None:
    alone = start_worker("--slots", "1", "--vision-cache", "0")
    one_at_a_time = [_end(client, client.submit(**job).job) for job in asked]
    assert alone.stop(30) == 0
    start_worker("--slots", "8")
    handles = [client.submit(**job) for job in asked]
    together = [_end(client, handle.job) for handle in handles]
    assert together == one_at_a_time
    assert len(set(together)) > len(asked) // 2


def _end(client: Client, job: str) -> tuple[str, str, int]:
    result = client.wait(job, 60)
    assert result.error is None
    return result.text, result.finish_reason, result.usage.completion_tokens
