"""What 200 open pages cost the gateway, and the captions."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from gateways import Gateway, gateway

from sailq.producer.client import Client

PAGES, CAPTIONS, RATE = 200, 600, 10
"""Open pages; captions of each run; captions a second while the processor time is measured, as of 10 boxes."""
HELLO = [{"role": "user", "content": "Hello"}]
pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]


@contextmanager
def open_pages(url: str, count: int) -> Iterator[list[int]]:
    """Opens the events of so many pages, and reads them in a thread. Yields the bytes that each has got."""
    place = urlsplit(url)
    got, ended = [0] * count, threading.Event()
    pages = [socket.create_connection((place.hostname, place.port)) for _ in range(count)]

    def read() -> None:
        while not ended.is_set():
            for number, page in enumerate(pages):
                with suppress(BlockingIOError):
                    got[number] += len(page.recv(1 << 20, socket.MSG_DONTWAIT))
            ended.wait(0.05)

    for page in pages:
        page.sendall(f"GET /page/events HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not all(got):
            ended.wait(0.05)
        yield got
    finally:
        ended.set()
        reader.join()
        for page in pages:
            page.close()


def captions_per_second(client: Client) -> float:
    began = time.monotonic()
    jobs = [client.submit(HELLO, options={"max_new_tokens": 4}, wait=60).job for _ in range(CAPTIONS)]
    for _ in client.as_completed(jobs, 120):
        pass
    return CAPTIONS / (time.monotonic() - began)


def load(running: Gateway, seconds: float, client: Client | None) -> float:
    """The gateway's share of one core while `RATE` captions a second are made, or none without a client."""
    process, began = psutil.Process(running.pid), time.monotonic()
    before = sum(process.cpu_times()[:2])
    tick = threading.Event()
    for number in range(round(seconds * RATE)):
        if client is not None:
            client.submit(HELLO, options={"max_new_tokens": 4})
        tick.wait(max(0.0, began + (number + 1) / RATE - time.monotonic()))
    return float(sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)


def test_200_open_pages(redis_url: str, start_null: Callable[..., object], tmp_path: Path) -> None:
    start_null("--decode-ms", "1", "--slots", "8")
    arguments = ["--archive", tmp_path / "captions.db"]
    with gateway(redis_url, tmp_path / "gateway.log", *arguments) as running, Client(redis_url) as client:
        captions_per_second(client)  # warms up
        alone = captions_per_second(client)
        quiet = load(running, 15, client)
        with open_pages(running.url, PAGES) as got:
            watched = captions_per_second(client)
            busy = load(running, 15, client)
            idle = load(running, 15, None)
        assert min(got) > 10_000
    print(f"\nfigure: {PAGES} open pages: {busy:.1%} of a core at {RATE} captions a second ({quiet:.1%} without "
          f"pages), {idle:.1%} without captions; captions a second {watched / alone:.2f} of those without pages")
    assert busy <= 0.10 and idle <= 0.10 and watched >= 0.95 * alone
