"""Up to 1,000 simulated boxes on one real server: `make bench-fleet`.

    python -m tests.bench.fleet --out bench-out
    python -m tests.bench.fleet --boxes 1,25 --clip 4x420x616

Simulated producers and boxes (simulated.py) call the scripts of a real server in real time. Each box answers as fast as
a BM1684X would by the compiler's estimate, with the configuration that `sailq model plan` puts first. Prints a table,
leaves it and a plot in DIR, and exits with 1 where a bound is missed. Eight minutes; it wants two cores for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
import uvloop

from sailq.operators.fleet import Fleet
from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.shared import keys
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.worker.planning.timings import RECORDED, Timings
from tests.bench import bm1684x
from tests.bench.bm1684x import CAPTION
from tests.bench.markdown import markdown
from tests.bench.simulated import MODEL, SETTINGS, Box, Device, Finish, Ledger, Producers, TooBusy, job_of, teach
from tests.camera import camera_clip, stamped

BOXES = (1, 50, 100, 200, 400, 1000)
CYCLES = 2
"""A box ends a caption of each slot in a burst, and the next as many a cycle later: spans are whole cycles."""
OFFERED = 0.8
"""Of what all boxes can answer, while waits are taken: in a queue that is never empty, they say how long it is."""
EMPTIED_SECONDS, OFFERED_SECONDS = 60.0, 15.0
"""The longest that the queue may take to become empty, and how long waits are taken after that."""
WAITING = 2
"""Jobs a box that wait at any time, while captions are counted."""
SAMPLE = 10
"""Jobs of an ordinary client, at the end of each span."""
SHARES = {200: 0.98, 400: 0.98, 1000: 0.95}
"""Least captions/s, of as many times what one box makes."""
MOST_MS, MOST_WAIT_MS, COSTED = 0.25, 100.0, 400
"""A caption's time of the server's core, and 99 % of the waits, with so many boxes."""
MOST_LAG, MOST_SIMULATION = 0.05, 0.95
"""Seconds and share of a core: where the simulation needs more, it is the limit, and not the server."""
QUESTION, STAMP = "请描述视频中的内容", b"%016d" % 0


class BoxTimes(NamedTuple):
    """A box's slots, its seconds of a request's prefill and of a step, the host's share included, and how many requests
    it prefills together."""

    slots: int
    first: float
    step: float
    together: int

    @property
    def cycle(self) -> float:
        """Seconds in which each slot makes a caption."""
        return self.slots * self.first + (CAPTION - 1) * self.step

    @classmethod
    def planned(cls) -> BoxTimes:
        """Those of the fastest configuration that fits an SE7. A prefill takes its part of a shared launch."""
        best = bm1684x.best(Timings.load(RECORDED / f"{bm1684x.MODEL}.json"), bm1684x.job(bm1684x.SAMPLE))
        slots, step = best.sizes.slots, best.rate.step
        first = 3600 / best.rate.captions_per_hour - (CAPTION - 1) * step / slots
        return cls(slots, first, step, best.rate.together)


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
        kept: bytes that a caption leaves on the server for a while, by kind of key.
        lag: how late this process woke up, 99 %.
    """

    boxes: int
    full: Load
    backlog: int
    offered: Load
    waits: tuple[float, float, float]
    connections: int
    memory: int
    kept: dict[str, float]
    answered: int
    lag: float


class Meter:
    """Reads the counters of the server and of this process."""

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


async def measure(prepared: Prepared, url: str, boxes: int, times: BoxTimes) -> Point:
    cycle = times.cycle
    ledger, lags = Ledger(), list[float]()
    job = job_of(prepared.messages, CAPTION)
    with Client(settings=SETTINGS.model_copy(update={"redis_url": url})) as client:
        teach(client.connection)
        memory = client.connection.info("memory")["used_memory"]
        producers = Producers(job, prepared.blobs, STAMP, url, ledger, max(8, boxes // 4))
        finish = Finish(job, CAPTION)
        async with asyncio.TaskGroup() as tasks:
            lagging = tasks.create_task(_lag(lags))
            filling = tasks.create_task(producers.keep_waiting(WAITING * boxes))
            fleet = []
            for number in range(boxes):  # spread over a cycle, so that their bursts do not coincide
                device = Device(times.slots, times.first, times.step, CAPTION, times.together)
                box = Box(client.connection, url, number, device, ledger, finish)
                fleet.append(tasks.create_task(box.run()))
                await asyncio.sleep(cycle / boxes)
            await _say(boxes, "until all slots are taken, and in no burst's midst", 0.75 * cycle)
            lags.clear()
            meter = Meter(client.connection, ledger)
            await _say(boxes, "captions/s", CYCLES * cycle)
            full = meter.load()
            backlog = client.connection.llen(f"rq:queue:{keys.queue(MODEL)}")
            filling.cancel()
            offering = tasks.create_task(producers.offer(OFFERED * boxes * times.slots / cycle))
            await _until_empty(client.connection, boxes)
            began, meter = time.monotonic(), Meter(client.connection, ledger)
            await _say(boxes, "waits", OFFERED_SECONDS)
            offered, waits = meter.load(), [wait for at, wait in ledger.waits if at >= began]
            connections = client.connection.info("clients")["connected_clients"]
            memory = client.connection.info("memory")["used_memory"] - memory
            offering.cancel()
            await producers.finish()
            await asyncio.to_thread(_sample, client, prepared)
            await _until_all_have_ended(ledger)
            for task in (lagging, *fleet):
                task.cancel()
        _assert_once(client, ledger)
        kept = _kept(client, len(ledger.results))
    p50, p99 = np.percentile(waits, [50, 99])
    point = Point(boxes, full, backlog, offered, (p50, p99, max(waits)), connections, memory, kept,
                  len(ledger.results), float(np.percentile(lags, 99)))
    print(point, file=sys.stderr, flush=True)
    return point


def _kept(client: Client, captions: int) -> dict[str, float]:
    """Bytes for each caption, from the part of all keys that `Fleet.memory_by_kind` looks at."""
    kinds = Fleet(client.connection).memory_by_kind()
    share = client.connection.dbsize() / sum(kind.keys for kind in kinds)
    return {kind.kind: share * kind.bytes / captions for kind in kinds}


def _sample(client: Client, prepared: Prepared) -> None:
    """Checks that jobs of an ordinary client are answered among the others."""
    jobs = [client.submit_prepared(prepared, options={"max_new_tokens": CAPTION}).job for _ in range(SAMPLE)]
    for job, result in client.as_completed(jobs, 60):
        assert result.job == job and result.error is None and result.usage.completion_tokens == CAPTION


async def _until_empty(connection: redis.Redis, boxes: int) -> None:
    """Until no job waits, and a second longer: the jobs that waited must not count."""
    print(f"{boxes:4} boxes: until the queue is empty, at {OFFERED:.0%}", file=sys.stderr, flush=True)
    until = time.monotonic() + EMPTIED_SECONDS
    while connection.llen(f"rq:queue:{keys.queue(MODEL)}"):
        if time.monotonic() > until:
            raise TooBusy(f"The queue is not empty after {EMPTIED_SECONDS:g} s.")
        await asyncio.sleep(0.02)
    await asyncio.sleep(1)


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
    """A server as deploy/redis has it: its data go to the disk once a second. No other's worker looks at its port."""
    folder = Path(tempfile.mkdtemp(prefix="sailq-fleet-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        with embedded_server(port=port, data=folder) as running:
            yield running.url
    finally:
        shutil.rmtree(folder)


def clip(size: tuple[int, int, int], stamp: bytes = STAMP) -> Prepared:
    """A question about a clip that no other `stamp` of 16 bytes makes."""
    frames, height, width = size
    digest, blob = stamped(encode_frames(camera_clip(frames, height, width))[1], stamp)
    part = FramesPart(type="video", blob=digest, frames=frames, height=height, width=width)
    return Prepared((Message(role="user", content=(part, TextPart(text=QUESTION))),), {digest: blob}, 0)


def tables(points: list[Point], size: tuple[int, int, int], blob: int, times: BoxTimes) -> str:
    one = points[0]
    rows, costs = [], []
    for point in points:
        share = point.full.rate / (point.boxes * one.full.rate / one.boxes)
        load, milliseconds = point.full, 1000 * point.full.server / point.full.rate
        costed = point.boxes == COSTED
        rows.append((
            f"{point.boxes}", f"{load.rate:.1f}", _held(f"{share:.3f}", "≥", share, SHARES.get(point.boxes), point),
            f"{1000 * point.waits[0]:.1f}",
            _held(f"{1000 * point.waits[1]:.1f}", "≤", 1000 * point.waits[1], MOST_WAIT_MS if costed else None, point),
            f"{1000 * point.waits[2]:.1f}",
            _held(f"{milliseconds:.2f}", "≤", milliseconds, MOST_MS if costed else None),
        ))
        costs.append((
            f"{point.boxes}", f"{load.server:.1%}", f"{load.commands / load.rate:.0f}", f"{point.backlog}",
            f"{load.received / 1e6:.1f}", f"{load.sent / 1e6:.1f}", f"{point.memory / point.answered / 1000:.1f}",
            f"{point.connections}", f"{load.simulation:.0%}", f"{1000 * point.lag:.0f}",
        ))
    shape = f"{size[0]} frames of {size[1]} × {size[2]}, {blob / 1000:.0f} KB"
    return "\n\n".join([
        f"Simulated boxes on one server, in real time, on {os.cpu_count()} cores for server and simulation; "
        f"clips of {shape}, captions of {CAPTION} tokens, not streamed; {1000 * times.first:.0f} ms to start one and "
        f"{1000 * times.step:.0f} ms a step of {times.slots} slots, the compiler's estimate; printed by `{command()}`.",
        markdown(("boxes", "captions/s", "share of boxes × one", f"wait at {OFFERED:.0%}, ms: 50 %", "99 %", "longest",
                  "server's core, ms a caption"), rows),
        "Producers and boxes together, while the queue is never empty; data on the disk once a second:",
        markdown(("boxes", "server, of one core", "commands a caption", "jobs waiting",
                  "MB/s in", "MB/s out", "KB kept a caption", "connections", "simulation, of one core",
                  "it wakes late, ms, 99 %"), costs),
        "Bytes kept a caption, by kind of key: "
        + ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(points[-1].kept.items()) if size >= 1) + ".",
    ])


def _held(text: str, sign: str, value: float, bound: float | None, point: Point | None = None) -> str:
    """A figure with its bound. With `point`: unless the simulation was the limit."""
    if bound is None:
        return text
    if value >= bound if sign == "≥" else value <= bound:
        return f"{text} ({sign} {bound:g})"
    if point and (point.lag > MOST_LAG or point.full.simulation > MOST_SIMULATION):
        return f"{text} ({sign} {bound:g}: unknown, the simulation is the limit)"
    return f"{text} ({sign} {bound:g}: MISSED)"


def command() -> str:
    return "make bench-fleet" if len(sys.argv) == 3 else " ".join(["python -m tests.bench.fleet", *sys.argv[1:]])


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
    times = BoxTimes.planned()
    prepared = clip((frames, height, width))
    points, missed = [], ""
    for number in numbers:
        with server() as url:
            try:
                points.append(uvloop.run(measure(prepared, url, number, times)))
            except TooBusy as error:
                missed = f"{number} boxes: MISSED. {error}"
                break
    (blob,) = prepared.blobs.values()
    text = "\n\n".join([tables(points, (frames, height, width), len(blob), times), missed]).strip()
    given.out.mkdir(exist_ok=True)
    (given.out / "fleet.md").write_text(f"{text}\n")
    draw(points, given.out / "fleet.png")
    print(f"\n{text}")
    sys.exit("MISSED" in text)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
