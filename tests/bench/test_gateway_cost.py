"""The cost of the gateway: captions/s and the time to the first token, against the Python client."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Table
from gateways import gateway
from openai_media import data_url

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.producer.samples import sample
from tests.bench.turns import spread

IN_FLIGHT = 16
CLIPS = 33
TOKENS = 24
RUNS = 5
ASKED = 60
LEAST, MOST_ADDED = 0.97, 0.015
SIZE = {"resized_height": 140, "resized_width": 224, "nframes": 2}
QUESTION = "请描述视频中的内容"
Ask = Callable[[Path], float]
"""Asks about a clip. Returns the seconds to the first text."""


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Different clips, so that none is in the worker's cache."""
    paths = []
    for index in range(CLIPS):
        paths.append(tmp_path / f"{index}.mp4")
        sample(3, 10 * index).media[0].write(paths[-1])
    return paths


@contextmanager
def by_client(url: str, model: str, tokens: int) -> Iterator[Ask]:
    with Client(url) as client:

        def ask(path: Path) -> float:
            began = time.perf_counter()
            content = [{"type": "video", "video": str(path), **SIZE}, {"type": "text", "text": QUESTION}]
            job = client.submit(
                [{"role": "user", "content": content}], model=model, stream=True, options={"max_new_tokens": tokens}
            ).job
            first = 0.0
            for _ in client.stream(job, 600):
                first = first or time.perf_counter() - began
            result = client.wait(job, 600)
            assert result.error is None
            return first

        yield ask


@contextmanager
def by_gateway(url: str, model: str, tokens: int) -> Iterator[Ask]:
    with httpx.Client(base_url=url, timeout=600) as client:

        def ask(path: Path) -> float:
            began = time.perf_counter()
            body: dict[str, Any] = {
                "model": model, "stream": True, "max_tokens": tokens, "mm_processor_kwargs": SIZE,
                "messages": [{"role": "user", "content": [
                    {"type": "video_url", "video_url": {"url": data_url(path)}}, {"type": "text", "text": QUESTION}]}],
            }
            first, reason = 0.0, None
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        choice = json.loads(line[6:])["choices"][0]
                        if choice["delta"].get("content"):
                            first = first or time.perf_counter() - began
                        reason = choice["finish_reason"] or reason
            assert reason in {"stop", "length"}
            return first

        yield ask


async def client_captions(url: str, model: str, clips: list[Path]) -> float:
    """Captions/s by the Python client."""
    async with AsyncClient(url) as client:

        async def ask(path: Path) -> None:
            content = [{"type": "video", "video": str(path), **SIZE}, {"type": "text", "text": QUESTION}]
            handle = await client.submit(
                [{"role": "user", "content": content}], model=model, options={"max_new_tokens": TOKENS}
            )
            assert (await client.wait(handle.job, 600)).error is None

        return await _rate(ask, clips)


async def gateway_captions(url: str, model: str, clips: list[Path]) -> float:
    """Captions/s through a gateway."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(path: Path) -> None:
            content = [{"type": "video_url", "video_url": {"url": data_url(path)}}, {"type": "text", "text": QUESTION}]
            body = {"model": model, "max_tokens": TOKENS, "mm_processor_kwargs": SIZE,
                    "messages": [{"role": "user", "content": content}]}
            (await client.post("/v1/chat/completions", json=body)).raise_for_status()

        return await _rate(ask, clips)


async def _rate(ask: Callable[[Path], Awaitable[None]], clips: list[Path]) -> float:
    """Asks about the first clip, and then measures the others, `IN_FLIGHT` at a time."""
    await ask(clips[0])
    free = asyncio.Semaphore(IN_FLIGHT)

    async def one(path: Path) -> None:
        async with free:
            await ask(path)

    began = time.perf_counter()
    await asyncio.gather(*map(one, clips[1:]))
    return (len(clips) - 1) / (time.perf_counter() - began)


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_captions_per_second(
    model: Path, start_worker: Callable[..., ManagedProcess], redis_url: str, clips: list[Path], tmp_path: Path,
    table: Table,
) -> None:
    start_worker("--model", model, "--threads", 2, "--vision-cache", 0)
    pairs = []
    with gateway(redis_url, tmp_path / "gateway.log") as running:
        for _ in range(RUNS):
            before = asyncio.run(client_captions(redis_url, model.name, clips))
            pairs.append((before, asyncio.run(gateway_captions(running.url, model.name, clips))))
    shares = [after / before for before, after in pairs]
    table(
        f"{CLIPS - 1} captions, {IN_FLIGHT} in flight, median (min–max) of {RUNS} runs by turns",
        ("way", "captions/s", "share", "bound"),
        [("Python client", spread([one for one, _ in pairs], ".3f"), "1", ""),
         ("gateway", spread([two for _, two in pairs], ".3f"), spread(shares, ".3f"), f"≥ {LEAST}")],
    )
    print(f"figure: captions/s through the gateway as a share of the Python client's: {spread(shares, '.3f')}")
    assert statistics.median(shares) >= LEAST


@pytest.mark.bench
def test_time_to_first_token(
    start_worker: Callable[..., ManagedProcess], redis_url: str, clips: list[Path], tmp_path: Path, table: Table
) -> None:
    """One at a time, with sailq-tiny, so that the gateway's own time is not hidden by the model's."""
    start_worker("--vision-cache", 0)
    with (
        gateway(redis_url, tmp_path / "gateway.log") as running,
        by_client(redis_url, "sailq-tiny", 16) as client,
        by_gateway(running.url, "sailq-tiny", 16) as through,
    ):
        for ask in (client, through):
            ask(clips[0])
        pairs = [(client(clips[at % CLIPS]), through(clips[at % CLIPS])) for at in range(ASKED)]
    added = [after - before for before, after in pairs]
    table(
        f"Seconds to the first text, median (min–max) of {ASKED} clips by turns",
        ("way", "seconds", "added", "bound"),
        [("Python client", spread([one for one, _ in pairs], ".4f"), "", ""),
         ("gateway", spread([two for _, two in pairs], ".4f"), spread(added, ".4f"), f"≤ {MOST_ADDED}")],
    )
    print(f"figure: seconds to the first token that the gateway adds: {spread(added, '.4f')}")
    assert statistics.median(added) <= MOST_ADDED
