"""A worker on the emulator, tested through the queue."""

from __future__ import annotations

from collections.abc import Callable

from conftest import Compile
from tiny import RIGHT_SIZED

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.shared.jobs import GenerationOptions

SECONDS = 300


def test_a_job_is_answered_through_the_queue(
    client: Client, start_worker: Callable[..., ManagedProcess], compiled: Compile
) -> None:
    # The worker has answered its self-test twice before it takes jobs.
    start_worker("--device", "emulator", "--bmodel", compiled(*RIGHT_SIZED), seconds=SECONDS)
    options = GenerationOptions(max_new_tokens=8)
    hello, long = ([{"role": "user", "content": text}] for text in ("Hello!", "word " * 60))
    first = client.submit(hello, options=options)
    too_long = client.submit(long, options=options)
    again = client.submit(hello, options=options)
    results = [client.wait(handle.job, SECONDS) for handle in (first, too_long, again)]
    assert results[0].error is None and results[0].text == results[2].text != ""
    assert results[0].device == "BM1684X emulator, device 0"
    assert results[1].error and results[1].error.code == "too_long"
