"""2,000 open streams on one gateway."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from farm import NullWorker
from gateways import gateway

pytestmark = [pytest.mark.proof, pytest.mark.alone]

STREAMS = 2000
TOKENS = 16
MAX_MEMORY = 500e6
SECONDS = 240


async def ask(url: str, number: int) -> dict[str, object]:
    """One stream: its text, and how it ended."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    body = json.dumps({
        "model": "sailq-tiny", "messages": [{"role": "user", "content": f"Count to {number}."}], "stream": True,
        "max_tokens": TOKENS, "stream_options": {"include_usage": True},
    }).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
            f"Content-Length: {len(body)}", "", ""]
    writer.write("\r\n".join(head).encode() + body)
    await writer.drain()
    events = []
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: "):
            events.append(json.loads(line[6:]))
    writer.close()
    assert "error" not in events[-1], events[-1]
    return {"finish": events[-2]["choices"][0]["finish_reason"], "tokens": events[-1]["usage"]["completion_tokens"]}


async def open_requests(client: httpx.AsyncClient, url: str) -> int:
    shown = (await client.get(f"{url}/metrics")).text
    return round(float(shown.split("\nsailq:gateway_open_requests ")[1].split()[0])) - 1  # without this one


def test_two_thousand_open_streams(redis_url: str, tmp_path: Path, start_null: Callable[..., NullWorker]) -> None:
    """No worker is up until all are open."""
    start_null().kill()  # it has published the model's card
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with gateway(redis_url, tmp_path / "gateway.log") as running:

        async def all_of_them() -> list[dict[str, object]]:
            asks = [asyncio.create_task(ask(running.url, number)) for number in range(STREAMS)]
            async with httpx.AsyncClient(timeout=60) as client:
                while await open_requests(client, running.url) < STREAMS:
                    await asyncio.sleep(0.2)
            await asyncio.to_thread(start_null, "--slots", "32", "--decode-ms", "5")
            return await asyncio.gather(*asks)

        answers = asyncio.run(asyncio.wait_for(all_of_them(), SECONDS))
        children = sum(child.memory_info().rss for child in psutil.Process(running.pid).children(recursive=True))
        status = Path(f"/proc/{running.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 + children
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers == [{"finish": "length", "tokens": TOKENS}] * STREAMS
    print(f"\nfigure: {STREAMS} open streams: all answered, at most {peak / 1e6:.0f} MB")
    assert peak <= MAX_MEMORY
