"""The simulated boxes of `make bench-fleet` against a real worker: the server must see the same of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from farm import NullWorker
from own_server import OwnServer

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.media.messages import Prepared
from tests.bench import fleet, simulated

JOBS, SLOTS, TOKENS, SIZE = 30, 4, 20, (2, 140, 224)
FIRST, STEP = 0.060, 0.020
"""Seconds. All jobs take about 5."""
IDLE_SECONDS = 6.5
"""A worker without jobs looks after others' jobs 3 times in it, or 4."""
CLOSE, FEW = 0.04, 8
"""How far counts may be apart: as a share, and for what is sent by the second rather than by the job."""
OURS = {"zcard", "keys", "info", "config|resetstat", "script|load"}
NEW_CONNECTIONS = {"client|setname", "client|info", "client|setinfo", "ping", "select", "subscribe", "config|get"}


class Seen(NamedTuple):
    """By a server: calls of each command, and bytes."""

    calls: dict[str, int]
    received: int
    sent: int


def see(connection: redis.Redis, submit: Callable[[], None]) -> Seen:
    """From when there is a worker, which is idle for a while, until it has answered all that is submitted then."""
    give_up = time.monotonic() + 120
    while not connection.zcard(keys.WORKERS):
        time.sleep(0.02)
    connection.config_resetstat()
    time.sleep(IDLE_SECONDS)
    submit()
    while len(connection.keys(keys.result("*"))) < JOBS:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    calls = {name.removeprefix("cmdstat_"): said["calls"] for name, said in connection.info("commandstats").items()}
    stats: dict[str, Any] = connection.info("stats")
    return Seen({name: number for name, number in calls.items() if name not in OURS | NEW_CONNECTIONS},
                stats["total_net_input_bytes"], stats["total_net_output_bytes"])


async def side_by_side(
    prepared: Prepared, url: str, theirs: redis.Redis, ours: redis.Redis, submit: Callable[[], None]
) -> tuple[Any, Seen, Seen]:
    """A simulated box's ledger, what the server at `url` saw of it, and what the other server saw of a real one, to
    which `submit` submits."""
    loop, ledger, job = asyncio.get_running_loop(), simulated.Ledger(), simulated.job_of(prepared.messages, TOKENS)
    device = simulated.Device(SLOTS, FIRST, STEP, TOKENS)
    box = asyncio.create_task(
        simulated.Box(theirs, url, 1, device, ledger, simulated.Finish(job, TOKENS)).run()
    )
    producers = simulated.Producers(job, prepared.blobs, fleet.STAMP, url, ledger, 1)

    async def submit_all() -> None:
        for _ in range(JOBS):
            await producers.submit()

    seeing = asyncio.gather(
        asyncio.to_thread(see, theirs, lambda: asyncio.run_coroutine_threadsafe(submit_all(), loop).result()),
        asyncio.to_thread(see, ours, submit),
    )
    try:
        await asyncio.wait({box, seeing}, return_when=asyncio.FIRST_COMPLETED)
        if box.done():
            await box
        return ledger, *await seeing
    finally:
        box.cancel()
        await asyncio.wait({box})
        await producers.finish()


@pytest.mark.proof
@pytest.mark.alone
def test_a_server_sees_the_same_of_a_simulated_box_as_of_a_real_worker(
    start_null: Callable[..., NullWorker], folder: Path
) -> None:
    """Each has a server of its own: other tests' workers look after their own jobs, too."""
    (folder / "real").mkdir()
    prepared = fleet.clip(SIZE)
    with (
        OwnServer(folder) as own, own.start() as theirs, Client(own.url) as their_client,
        OwnServer(folder / "real") as real, real.start() as connection, Client(real.url) as client,
    ):
        for server in (theirs, connection):
            simulated.teach(server)
        start_null("--slots", f"{SLOTS}", "--prefill-ms", f"{1000 * FIRST}", "--decode-ms", f"{1000 * STEP}",
                   ready=False, url=real.url)

        def submit() -> None:
            for number in range(JOBS):
                one = fleet.clip(SIZE, b"another%09d" % number)
                client.submit_prepared(one, options={"max_new_tokens": TOKENS})

        ledger, of_simulated, of_real = asyncio.run(side_by_side(prepared, own.url, theirs, connection, submit))
        assert len(ledger.results) == JOBS and set(ledger.results.values()) == {1}
        assert len(theirs.keys(keys.result("*"))) == JOBS and theirs.get(keys.CLIP_BYTES) == b"0"
        for job in ledger.results:
            result = their_client.result(job)
            assert result is not None and result.job == job and result.usage.completion_tokens == TOKENS
    for name in of_real.calls.keys() | of_simulated.calls.keys():
        there, here = of_real.calls.get(name, 0), of_simulated.calls.get(name, 0)
        assert abs(there - here) <= max(FEW, CLOSE * there), f"{name}: {there} by the real one, {here} by the simulated"
    assert of_simulated.received == pytest.approx(of_real.received, rel=CLOSE)
    assert of_simulated.sent == pytest.approx(of_real.sent, rel=CLOSE)
    print(f"figure: commands of {JOBS} captions and {IDLE_SECONDS} idle seconds: {sum(of_real.calls.values())} of a "
          f"worker, {sum(of_simulated.calls.values())} of a simulated one; bytes sent by them: {of_real.received} and "
          f"{of_simulated.received}")
