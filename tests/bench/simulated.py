"""A box and its producers as their server sees them: what real ones send, when a device would have been ready."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import msgpack
from playback import Trip, Values, bulk
from roles import Asked, WorkerRoles
from sailq.shared import keys
from sailq.shared.jobs import IdFactory
from sailq.shared.rqjob import FUNCTION, Serializer
from sailq.worker import consumer, serve
from wire import Pool, Wire


class Device:
    """Answers of `tokens` tokens in `slots` slots, in the scheduler's order: a step prefills at most one request and
    then decodes a token for each. `first` and `step`: seconds of a prefill and of a decode.

    A step begins when the one before it should have ended, however late this process hears of it.
    """

    def __init__(self, slots: int, first: float, step: float, tokens: int) -> None:
        self.slots, self.first, self.step, self.tokens = slots, first, step, tokens
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._work = asyncio.Event()

    def answer(self) -> asyncio.Future[None]:
        """Done when the answer is."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._work.set()
        return done

    async def run(self) -> None:
        loop, running = asyncio.get_running_loop(), list[tuple[int, asyncio.Future[None]]]()
        until = loop.time()
        for step in count():
            if not running and not self._waiting:
                self._work.clear()
                await self._work.wait()
                until = loop.time()
            if self._waiting and len(running) < self.slots:
                running.append((step + self.tokens - 2, self._waiting.popleft()))  # the prefill makes the first token
                until += self.first
            until += self.step
            await asyncio.sleep(until - loop.time())
            for last, done in running:
                if last <= step and not done.done():
                    done.set_result(None)
            running = [one for one in running if one[0] > step]


@dataclass
class Ledger:
    """What became of all jobs. Times: `time.monotonic`, waits in seconds.

    Attributes:
        waits: (when a job was claimed, how long after its submission).
        ended: when each answer was written.
        results: answers written, by job.
    """

    submitted: int = 0
    claimed: int = 0
    waits: list[tuple[float, float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    results: Counter[bytes] = field(default_factory=Counter)

    @property
    def waiting(self) -> int:
        return self.submitted - self.claimed

    def claim(self, submitted_at: float) -> None:
        self.claimed += 1
        self.waits.append((time.monotonic(), time.time() - submitted_at))

    def end(self, job: bytes) -> None:
        self.ended.append(time.monotonic())
        self.results[job] += 1


class Box:
    """One worker with a device. `number` tells its name from others'."""

    def __init__(self, roles: WorkerRoles, url: str, number: int, device: Device, ledger: Ledger) -> None:
        self._roles, self._url, self._device, self._ledger = roles, url, device, ledger
        self._name = roles.name[:-6] + b"%06x" % number
        self._pool = Pool(url, serve.MAX_CONNECTIONS - 1)  # one hears commands
        self._places = asyncio.Semaphore(device.slots + serve.LOOK_AHEAD)
        self._closing = asyncio.Lock()
        self._executions: dict[bytes, Values] = {}
        self._own = Values({b"worker": self._name})
        self._claim = next(place for place, trip in enumerate(roles.begin) if _runs_script(trip))

    async def run(self) -> None:
        """Serves until it is cancelled."""
        roles, hears = self._roles, await Wire.connect(self._url)
        try:
            await hears.ask(b"SUBSCRIBE rq:pubsub:%b\r\n" % self._name, 1)
            await self._play(roles.birth)
            async with asyncio.TaskGroup() as tasks:
                for role in (self._device.run(), self._beat(), self._look(), self._take(tasks)):
                    tasks.create_task(role)
        finally:
            hears.close()
            self._pool.close()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        roles = self._roles
        while True:
            await self._places.acquire()
            job = None
            while job is None:
                (job,) = await self._play([roles.wait])
            execution = os.urandom(16).hex().encode()
            data = bulk(rq_data(job.decode()))
            values = Values({b"worker": self._name, b"job": job, b"execution": execution, b"=data": data})
            self._executions[execution] = values
            await self._play(roles.take, values)
            tasks.create_task(self._work(values))
            await self._play(roles.taken, values)

    async def _work(self, values: Values) -> None:
        roles = self._roles
        claimed = await self._play(roles.begin[: self._claim + 1], values)
        state, request = claimed[-1][:2]
        assert state == b"run", state
        job = msgpack.unpackb(request)["body"]
        self._ledger.claim(job["submitted_at"])
        digest = next(part["blob"] for part in job["messages"][0]["content"] if "blob" in part)
        values[b"digest"], values[b"name"] = digest.encode(), keys.blob_name(digest).encode()
        await self._play(roles.begin[self._claim + 1 :], values)
        await self._device.answer()
        finish = next(place for place, trip in enumerate(roles.end) if _runs_script(trip)) + 1
        finished = await self._play(roles.end[:finish], values)
        if finished[-1] == 1:
            self._ledger.end(values[b"job"])
        async with self._closing:
            await self._play(roles.end[finish:], values)
        del self._executions[values[b"execution"]]
        self._places.release()

    async def _beat(self) -> None:
        for beat in count():
            await asyncio.sleep(consumer.BEAT_SECONDS)
            if beat % consumer._IDLE_BEATS and not self._executions:
                continue
            now, data, replies = time.time(), [], 0
            for each, trip in self._roles.beat:
                for values in list(self._executions.values()) if each else [self._own]:
                    data.append(trip.render(now, values))
                    replies += trip.replies
            async with self._pool.wire() as wire:
                await wire.ask(b"".join(data), replies)

    async def _look(self) -> None:
        while True:
            first = await self._play(self._roles.look[:1])
            if _more_to_do(first[0]):
                await self._play(self._roles.look[1:])
            await asyncio.sleep(self._roles.look_seconds)

    async def _play(self, trips: Sequence[Trip], values: Values | None = None) -> list[object]:
        return await self._pool.play(trips, self._own if values is None else values)


class Producers:
    """Submit jobs as recorded, each with a clip of its own."""

    def __init__(self, trips: Sequence[Trip], asked: Asked, url: str, ledger: Ledger, connections: int = 8) -> None:
        self._trips, self._ledger = trips, ledger
        self._pool, self._ids = Pool(url, connections), IdFactory()
        self._blob, self._stamp = asked.blob, asked.stamp
        self._begun: set[asyncio.Task[None]] = set()  # with those that failed

    async def submit(self) -> None:
        self._ledger.submitted += 1
        now = time.time()
        job, blob = self._ids.new(now), self._blob.replace(self._stamp, os.urandom(8).hex().encode(), 1)
        digest = hashlib.sha256(blob).hexdigest()
        await self._pool.play(self._trips, Values({
            b"job": job.encode(), b"digest": digest.encode(), b"name": keys.blob_name(digest).encode(),
            b"=blob": bulk(blob), b"=data": bulk(rq_data(job)), b"submitted": struct.pack(">d", now),
        }))

    async def keep_waiting(self, jobs: int) -> None:
        """Has so many jobs wait at any time, until it is cancelled."""
        while True:
            for _ in range(jobs - self._ledger.waiting):
                self._begin()
            await asyncio.sleep(0.01)

    async def offer(self, rate: float) -> None:
        """`rate` jobs a second, each when it happens to come, until it is cancelled."""
        loop, chance = asyncio.get_running_loop(), random.Random(0)
        at = loop.time()
        while True:
            at += chance.expovariate(rate)
            await asyncio.sleep(at - loop.time())
            self._begin()

    async def finish(self) -> None:
        """Until what was begun is submitted."""
        await asyncio.gather(*self._begun)
        self._pool.close()

    def _begin(self) -> None:
        task = asyncio.create_task(self.submit())
        self._begun.add(task)
        task.add_done_callback(lambda done: done.exception() or self._begun.discard(done))


def rq_data(job: str) -> bytes:
    """What RQ writes of a job's function and arguments."""
    return zlib.compress(Serializer.dumps([FUNCTION, None, [job], {}]))


def _runs_script(trip: Trip) -> bool:
    return trip.commands[0][0] == b"EVALSHA"


def _more_to_do(reply: object) -> bool:
    """A look's first reply: a lock that another has is none, a script's counts are zeros."""
    return any(reply) if isinstance(reply, list) else bool(reply)
