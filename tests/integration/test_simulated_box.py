"""The simulated boxes of `make bench-fleet` against a real worker: the server must see the same of both."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
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

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
recorded, simulated = map(importlib.import_module, ("recorded", "simulated"))

JOBS, SLOTS, TOKENS, SIZE = 30, 4, 20, (2, 140, 224)
FIRST, STEP, RECORDED_STEP = 0.060, 0.020, 0.115
"""Seconds. All jobs take about 5; in the recording, each takes longer than from beat to beat."""
IDLE_SECONDS = 6.5
"""A worker without jobs beats once in it, or twice."""
CLOSE, FEW = 0.04, 6
"""How far counts may be apart: as a share, and for what is sent by the second rather than by the job."""
OURS = {"zcard", "info", "config|resetstat", "client|setname", "client|info", "client|setinfo", "ping", "script|load"}
"""What the test itself asks, and what new connections do."""


class Seen(NamedTuple):
    """By a server: calls of each command, and bytes."""

    calls: dict[str, int]
    received: int
    sent: int


def see(connection: redis.Redis, submit: Callable[[], None]) -> Seen:
    """From when there is a worker, which is idle for a while, until it has answered all that is submitted then."""
    give_up = time.monotonic() + 60
    while not connection.zcard(keys.WORKERS):
        time.sleep(0.02)
    connection.config_resetstat()
    time.sleep(IDLE_SECONDS)
    submit()
    while connection.zcard(f"rq:finished:{keys.queue('sailq-tiny')}") < JOBS:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    calls = {name.removeprefix("cmdstat_"): said["calls"] for name, said in connection.info("commandstats").items()}
    stats: dict[str, Any] = connection.info("stats")
    return Seen({name: number for name, number in calls.items() if name not in OURS},
                stats["total_net_input_bytes"], stats["total_net_output_bytes"])


async def side_by_side(
    recording: Any, url: str, theirs: redis.Redis, ours: redis.Redis, submit: Callable[[], None]
) -> tuple[Any, Seen, Seen]:
    """A simulated box's ledger, what the server at `url` saw of it, and what the other server saw of a real one, to
    which `submit` submits."""
    loop, ledger = asyncio.get_running_loop(), simulated.Ledger()
    device = simulated.Device(SLOTS, FIRST, STEP, TOKENS)
    box = asyncio.create_task(simulated.Box(recording.worker, url, 1, device, ledger).run())
    producers = simulated.Producers(recording.producer, recording.asked, url, ledger)

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
    start_null: Callable[..., NullWorker], folder: Path, tmp_path: Path
) -> None:
    """Each has a server of its own: other tests' workers look after their own jobs, too."""
    (folder / "real").mkdir()
    timing = ("--slots", f"{SLOTS}", "--prefill-ms", f"{1000 * FIRST}", "--decode-ms")
    with (
        OwnServer(folder) as own, own.start() as theirs, Client(own.url) as their_client,
        OwnServer(folder / "real") as real, real.start() as connection, Client(real.url) as client,
    ):
        slow = start_null(*timing, f"{1000 * RECORDED_STEP}", "--sent", str(tmp_path / "sent"), url=own.url)

        def stop() -> Path:
            slow.signal(signal.SIGTERM)
            slow.wait_for_end()
            return tmp_path / "sent"

        recording = recorded.record(their_client, SIZE, TOKENS, stop)
        theirs.flushdb()
        start_null(*timing, f"{1000 * STEP}", ready=False, url=real.url)

        def submit() -> None:
            for number in range(JOBS):
                prepared = recorded.clip(*SIZE, b"another%09d" % number)
                client.submit_prepared(prepared, options={"max_new_tokens": TOKENS})

        ledger, of_simulated, of_real = asyncio.run(side_by_side(recording, own.url, theirs, connection, submit))
        assert len(ledger.results) == JOBS and set(ledger.results.values()) == {1}
        assert len(theirs.keys(keys.result("*"))) == JOBS
        for job in ledger.results:
            result = their_client.result(job.decode())
            assert result is not None and result.job == job.decode() and result.usage.completion_tokens == TOKENS
    for name in of_real.calls.keys() | of_simulated.calls.keys():
        there, here = of_real.calls.get(name, 0), of_simulated.calls.get(name, 0)
        assert abs(there - here) <= max(FEW, CLOSE * there), f"{name}: {there} by the real one, {here} by the simulated"
    assert of_simulated.received == pytest.approx(of_real.received, rel=CLOSE)
    assert of_simulated.sent == pytest.approx(of_real.sent, rel=CLOSE)
    print(f"figure: commands of {JOBS} captions and {IDLE_SECONDS} idle seconds: {sum(of_real.calls.values())} of a "
          f"worker, {sum(of_simulated.calls.values())} of a simulated one; bytes sent by them: {of_real.received} and "
          f"{of_simulated.received}")
