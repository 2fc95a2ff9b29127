"""Up to 400 simulated boxes on one real server: `make bench-fleet`.

    python tests/bench/fleet.py --out bench-out
    python tests/bench/fleet.py --boxes 1,25 --clip 4x420x616

Records a real producer and a real worker (recorded.py) and plays them back for each number of boxes, in real time:
each box answers as fast as a BM1684X with 16 slots would by the compiler's estimate (timings.py). Prints a table,
leaves it and a plot in DIR, and exits with 1 where a bound is missed. Seven minutes; it wants two cores for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the tests share

import redis
import uvloop
from bm1684x import CAPTION, CONTEXT, PATCHES, PROMPT
from playback import Values
from recorded import Recording, record
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.producer.embedded import embedded_server
from sailq.producer.fleet import Fleet
from sailq.shared import keys
from sailq.shared.settings import Settings
from simulated import Box, Device, Ledger, Producers
from timings import Timings, markdown
from wire import Wire

SLOTS = 16
BOXES = (1, 50, 100, 200, 400)
CYCLES = 2
"""A box ends `SLOTS` captions in a burst, and the next as many a cycle later: spans are whole cycles."""
OFFERED = 0.8
"""Of what all boxes can answer, while waits are taken: in a queue that is never empty, they say how long it is."""
QUIET_SECONDS, OFFERED_SECONDS = 8.0, 15.0
WAITING = 2
"""Jobs a box that wait at any time, while captions are counted."""
SAMPLE = 10
"""Jobs of an ordinary client, at the end of each span."""
BOUNDS = {200: 0.95, 400: 0.90}
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"


@dataclass(frozen=True)
class Load:
    """What happened in a span of `seconds`: of all cores' time, seconds a second; bytes a second."""

    seconds: float
    captions: int
    server: float
    simulation: float
    received: float
    sent: float
    commands: float

    @property
    def rate(self) -> float:
        return self.captions / self.seconds


@dataclass(frozen=True)
class Point:
    """One number of boxes. Waits and lag in seconds; `offered`: with waits; memory in bytes.

    Attributes:
        full: while jobs waited at any time: `backlog` did at its end.
        kinds: bytes of a key, by kind, of what a caption leaves on the server for a while.
        lag: how late this process woke up, 99 %.
    """

    boxes: int
    full: Load
    backlog: int
    offered: Load
    waits: tuple[float, float, float]
    connections: int
    memory: int
    kinds: dict[str, float]
    answered: int
    lag: float


class Meter:
    """The server's and this process's own accounts."""

    def __init__(self, connection: redis.Redis, ledger: Ledger) -> None:
        self._connection, self._ledger = connection, ledger
        self._began = self._read()

    def _read(self) -> dict[str, float]:
        said: dict[str, Any] = self._connection.info("everything")
        return {
            "seconds": time.monotonic(), "captions": len(self._ledger.ended),
            "server": said["used_cpu_user"] + said["used_cpu_sys"], "simulation": time.process_time(),
            "received": said["total_net_input_bytes"], "sent": said["total_net_output_bytes"],
            "commands": said["total_commands_processed"],
        }

    def load(self) -> Load:
        spent = {name: value - self._began[name] for name, value in self._read().items()}
        seconds = spent.pop("seconds")
        captions = round(spent.pop("captions"))
        return Load(seconds, captions, **{name: value / seconds for name, value in spent.items()})


async def measure(recording: Recording, url: str, boxes: int, device: tuple[float, float]) -> Point:
    """`device`: seconds of a prefill and of a decode."""
    first, step = device
    cycle = SLOTS * first + (CAPTION - 1) * step
    ledger, lags = Ledger(), list[float]()
    with Client(settings=Settings(redis_url=url, max_queued=10**6, max_blob_bytes=2**40)) as client:
        memory = client.connection.info("memory")["used_memory"]
        producers = Producers(recording.producer, recording.asked, url, ledger, max(8, boxes // 4))
        async with asyncio.TaskGroup() as tasks:
            lagging = tasks.create_task(_lag(lags))
            filling = tasks.create_task(producers.keep_waiting(WAITING * boxes))
            fleet = []
            for number in range(boxes):  # over a cycle, so that their bursts are spread
                box = Box(recording.worker, url, number, Device(SLOTS, first, step, CAPTION), ledger)
                fleet.append(tasks.create_task(box.run()))
                await asyncio.sleep(cycle / boxes)
            await _say(boxes, "until all slots are taken, and in no burst's midst", 0.75 * cycle)
            lags.clear()
            meter = Meter(client.connection, ledger)
            await _say(boxes, "captions/s", CYCLES * cycle)
            full = meter.load()
            backlog = client.connection.llen(f"rq:queue:{keys.queue(client.settings.model)}")
            filling.cancel()
            offering = tasks.create_task(producers.offer(OFFERED * boxes * SLOTS / cycle))
            await _say(boxes, f"until the queue is empty, at {OFFERED:.0%}", QUIET_SECONDS)
            began, meter = time.monotonic(), Meter(client.connection, ledger)
            await _say(boxes, "waits", OFFERED_SECONDS)
            offered, waits = meter.load(), [wait for at, wait in ledger.waits if at >= began]
            connections = client.connection.info("clients")["connected_clients"]
            memory = client.connection.info("memory")["used_memory"] - memory
            offering.cancel()
            await producers.finish()
            await asyncio.to_thread(_sample, client, recording)
            await _until_all_have_ended(ledger)
            for task in (lagging, *fleet):
                task.cancel()
        _assert_once(client, ledger)
        kinds = {kind.kind: kind.bytes / kind.keys for kind in Fleet(client.connection).memory_by_kind()
                 if kind.keys >= SAMPLE}
    p50, p99 = np.percentile(waits, [50, 99])
    point = Point(boxes, full, backlog, offered, (p50, p99, max(waits)), connections, memory, kinds,
                  len(ledger.results), float(np.percentile(lags, 99)))
    print(point, file=sys.stderr, flush=True)
    return point


def _sample(client: Client, recording: Recording) -> None:
    """An ordinary client's jobs are answered among the others."""
    prepared = recording.prepared
    jobs = [client.submit_prepared(prepared, options={"max_new_tokens": CAPTION}).job for _ in range(SAMPLE)]
    for job, result in client.as_completed(jobs, 60):
        assert result.job == job and result.error is None and result.usage.completion_tokens == CAPTION


async def _until_all_have_ended(ledger: Ledger) -> None:
    until = time.monotonic() + 60
    while len(ledger.ended) < ledger.submitted + SAMPLE:
        assert time.monotonic() < until, f"{ledger.submitted + SAMPLE - len(ledger.ended)} jobs have no result"
        await asyncio.sleep(0.1)


def _assert_once(client: Client, ledger: Ledger) -> None:
    assert set(ledger.results.values()) == {1}, "a job was answered twice"
    results = sum(1 for _ in client.connection.scan_iter(keys.result("*"), count=10_000))
    assert results == len(ledger.results) == ledger.submitted + SAMPLE, (results, len(ledger.results), ledger.submitted)


async def _lag(lags: list[float]) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.02)
        lags.append(time.monotonic() - before - 0.02)


async def _say(boxes: int, what: str, seconds: float) -> None:
    print(f"{boxes:4} boxes, {seconds:3.0f} s: {what}", file=sys.stderr, flush=True)
    await asyncio.sleep(seconds)


@contextmanager
def server() -> Iterator[str]:
    """A server as deploy/redis has it: its data go to the disk once a second."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-fleet-"))
    try:
        with embedded_server(data=folder) as running:
            yield running.url
    finally:
        shutil.rmtree(folder)


def recording_of(size: tuple[int, int, int]) -> Recording:
    """Of a real worker with the slots of a box; what it sends does not depend on how long its device takes."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-fleet-"))
    sent = folder / "sent"
    try:
        with server() as url, Client(url) as client:
            command = [sys.executable, str(NULL_WORKER), "--redis-url", url, "--slots", f"{SLOTS}",
                       "--decode-ms", "40", "--sent", str(sent)]
            worker = Companion("null worker", command, folder / "worker.log")
            try:
                worker.wait_until(Fleet(client.connection).workers, 120)

                def stop() -> Path:
                    assert worker.stop(30) == 0, worker.tail()
                    return sent

                return record(client, size, CAPTION, stop)
            finally:
                worker.stop()
    finally:
        shutil.rmtree(folder)


async def teach(url: str, recording: Recording) -> None:
    """The server learns the scripts, as from the first that has none."""
    wire = await Wire.connect(url)
    for script in recording.scripts:
        await wire.ask(script.render(time.time(), Values()), script.replies)
    wire.close()


def tables(points: list[Point], size: tuple[int, int, int], blob: int, device: tuple[float, float]) -> str:
    one = points[0]
    rows, costs = [], []
    for point in points:
        share = point.full.rate / (point.boxes * one.full.rate / one.boxes)
        bound = BOUNDS.get(point.boxes)
        rows.append((
            f"{point.boxes}", f"{point.full.rate:.1f}", f"{share:.3f}",
            "" if bound is None else f"≥ {bound:g}" if share >= bound else f"≥ {bound:g}: MISSED",
            *(f"{1000 * wait:.1f}" for wait in point.waits),
        ))
        load = point.full
        costs.append((
            f"{point.boxes}", f"{load.server:.1%}", f"{1000 * load.server / load.rate:.2f}",
            f"{load.commands / load.rate:.0f}", f"{point.backlog}", f"{load.received / 1e6:.1f}",
            f"{load.sent / 1e6:.1f}", f"{point.memory / point.answered / 1000:.1f}", f"{point.connections}",
            f"{load.simulation:.0%}", f"{1000 * point.lag:.0f}",
        ))
    first, step = device
    shape = f"{size[0]} frames of {size[1]} × {size[2]}, {blob / 1000:.0f} KB"
    return "\n\n".join([
        f"Simulated boxes on one server, in real time, on {os.cpu_count()} cores for server and simulation; "
        f"clips of {shape}, captions of {CAPTION} tokens, not streamed; {1000 * first:.0f} ms a first token and "
        f"{1000 * step:.0f} ms a step of {SLOTS} slots, the compiler's estimate; printed by `{command()}`.",
        markdown(("boxes", "captions/s", "share of boxes × one", "bound",
                  f"wait at {OFFERED:.0%}, ms: 50 %", "99 %", "longest"), rows),
        "Producers and boxes together, while the queue is never empty; data on the disk once a second:",
        markdown(("boxes", "server, of one core", "ms a caption", "commands a caption", "jobs waiting",
                  "MB/s in", "MB/s out", "KB kept a caption", "connections", "simulation, of one core",
                  "it wakes late, ms, 99 %"), costs),
        "Bytes of a key, by kind: "
        + ", ".join(f"{kind} {bytes:.0f}" for kind, bytes in sorted(points[-1].kinds.items())) + ".",
    ])


def command() -> str:
    return "make bench-fleet" if len(sys.argv) == 3 else " ".join(["python tests/bench/fleet.py", *sys.argv[1:]])


def draw(points: list[Point], path: Path) -> None:
    """Captions a second, and the server's share of a core, by boxes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle("Simulated boxes with a BM1684X's times on one server")
    boxes, one = [point.boxes for point in points], points[0]
    rates = figure.add_subplot(1, 2, 1, title="captions/s", xlabel="boxes")
    rates.plot(boxes, [point.full.rate for point in points], "o-", label="measured")
    rates.plot(boxes, [number * one.full.rate / one.boxes for number in boxes], ":", label="boxes × one")
    rates.legend()
    cores = figure.add_subplot(1, 2, 2, title="time of one core", xlabel="boxes")
    cores.plot(boxes, [point.full.server for point in points], "o-", label="server")
    cores.plot(boxes, [point.full.simulation for point in points], "o:", label="simulation")
    cores.axhline(1, color="tab:red", linewidth=1)
    cores.legend()
    for axes in (rates, cores):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", default=",".join(map(str, BOXES)), help="how many, the fewest first (%(default)s)")
    parser.add_argument("--clip", default="2x140x224", help="FRAMESxHEIGHTxWIDTH (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for table and plot (%(default)s)")
    given = parser.parse_args()
    numbers = [int(number) for number in given.boxes.split(",")]
    frames, height, width = map(int, given.clip.split("x"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    timings = Timings.load()
    device = (timings.first_token(PATCHES, PROMPT, SLOTS) / 1000, timings.step(SLOTS, CONTEXT) / 1000)
    print("recording a producer and a worker", file=sys.stderr, flush=True)
    recording = recording_of((frames, height, width))
    points = []
    for number in numbers:
        with server() as url:
            uvloop.run(teach(url, recording))
            points.append(uvloop.run(measure(recording, url, number, device)))
    text = tables(points, (frames, height, width), len(recording.asked.blob), device)
    given.out.mkdir(exist_ok=True)
    (given.out / "fleet.md").write_text(f"{text}\n")
    draw(points, given.out / "fleet.png")
    print(f"\n{text}")
    sys.exit("MISSED" in text)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
