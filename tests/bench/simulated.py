"""Boxes and producers as their server sees them: they call the scripts, when a device would have been ready.

The calls are made by the product's own `JobStore` and `Submitter`.

A box is one task with its own connections. All that is left out is what a box does between these calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import redis
from rq.utils import now
from rq.worker import SimpleWorker

from sailq.producer.submission import Submitter
from sailq.shared import keys
from sailq.shared.jobs import GenerationOptions, IdFactory, Job, ModelCard, Result, Timings, Turn, Usage
from sailq.shared.rqjob import Serializer, at
from sailq.shared.scripts import text, write
from sailq.shared.settings import Settings
from sailq.worker.process.registration import Registration
from sailq.worker.process.serve import LOOK_AHEAD
from sailq.worker.process.systemd_notifier import SystemdNotifier
from sailq.worker.queue.consumer import _BELL_SECONDS, _RECORD_BEATS, BEAT_SECONDS, register
from sailq.worker.queue.job_store import Claim, JobStore, new_execution
from tests.bench.link import Argument, Link, replaced

MODEL = "sailq-tiny"
SETTINGS = Settings(max_queued=10**6, max_blob_bytes=2**40)
WORD = "word "
"""The text of a token."""


class TooBusy(SystemExit):
    """The simulation is too slow to represent a box. It ends all tasks at once."""


class Calls:
    """Stands for a connection: what the product's own classes send through it is not sent, but kept in `call`."""

    def __init__(self, replies: dict[str, Any]) -> None:
        """`replies`: what a script that begins with such a word answers here."""
        self.call: list[Argument] = []
        self._replies = replies

    def register_script(self, text: str) -> Any:
        sha = hashlib.sha1(text.encode()).hexdigest()
        reply = next((reply for name, reply in self._replies.items() if f"\n-- {name}: " in text), None)

        def call(keys: Sequence[str] = (), args: Sequence[Argument] = (), client: Any = None) -> Any:
            self.call = ["EVALSHA", sha, len(keys), *keys, *args]
            return reply

        return call

    def sadd(self, *_: Any) -> None:
        """A producer's note of its queue, once in its life."""


REPLIES = {"submit": (b"queued", 0), "claim": [], "begin": 1, "renew": ((), ()), "finish": 1, "release": 1,
           "recover": (0, (), (), (), ()), "hold": (b"held", 0), "write": None}


class Device:
    """Answers of `tokens` tokens in `slots` slots, in the scheduler's order: a step prefills at most `together`
    requests and then decodes a token for each. `first` and `step`: seconds of a request's prefill and of a decode.

    A step begins when the one before it should have ended, however late this process hears of it.
    """

    def __init__(self, slots: int, first: float, step: float, tokens: int, together: int = 1) -> None:
        self.slots, self.first, self.step, self.tokens, self.together = slots, first, step, tokens, together
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._work = asyncio.Event()

    def answer(self) -> asyncio.Future[None]:
        """Returns when the answer is complete."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._work.set()
        return done

    async def run(self) -> None:
        loop, running = asyncio.get_running_loop(), list[tuple[int, asyncio.Future[None]]]()
        until, step = loop.time(), 0
        while True:
            if not running and not self._waiting:
                self._work.clear()
                await self._work.wait()
                until = loop.time()
            for _ in range(min(self.together, len(self._waiting), self.slots - len(running))):
                # The prefill generates the first token, and the next step the second.
                running.append((step + self.tokens - 2, self._waiting.popleft()))
                until += self.first
            # While no slot is free, nothing happens before the first answer ends.
            steps = 1 if len(running) < self.slots else min(last for last, _ in running) - step + 1
            until += steps * self.step
            step += steps
            await asyncio.sleep(until - loop.time())
            for last, done in running:
                if last < step and not done.done():
                    done.set_result(None)
            running = [one for one in running if one[0] >= step]


@dataclass
class Ledger:
    """The outcomes of all jobs. Times: `time.monotonic`, waits in seconds.

    Attributes:
        waits: (when a job was claimed, how long after its submission).
        ended: when each answer was written.
        results: answers written, by job.
    """

    submitted: int = 0
    claimed: int = 0
    submitted_at: dict[str, float] = field(default_factory=dict)
    waits: list[tuple[float, float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)

    @property
    def waiting(self) -> int:
        return self.submitted - self.claimed

    def claim(self, job: str) -> None:
        self.claimed += 1
        now = time.monotonic()
        if job in self.submitted_at:
            self.waits.append((now, now - self.submitted_at.pop(job)))

    def end(self, job: str) -> None:
        self.ended.append(time.monotonic())
        self.results[job] += 1


class Finish:
    """The call that ends a job of this kind: recorded once from a `JobStore`, then sent for other jobs, too."""

    def __init__(self, job: Job, tokens: int) -> None:
        calls, self._execution, self._job = Calls(REPLIES), new_execution(), job.id
        timings = Timings(queue_wait=1 / 7, fetch=1 / 7, preprocess=1 / 7, vision_encode=1 / 7, prefill=1 / 7,
                          time_to_first_token=1 / 7, inter_token_latency=1 / 7, decode=1 / 7, end_to_end=1 / 7)
        result = Result(
            job=job.id, conversation=job.id, turn=0, text=WORD * tokens, finish_reason="length",
            usage=Usage(prompt_tokens=96, vision_tokens=40, completion_tokens=tokens), timings=timings,
            tokens_per_second=1 / 7, worker="a-worker-of-some-name-1234-abcdef", device="null runner", model=MODEL,
            finished_at=job.submitted_at,
        )
        turn = Turn(job=job.id, turn=0, messages=job.messages, text=result.text)
        fake: Any = calls
        JobStore(fake, fake, SETTINGS, "").finish(job.id, self._execution, result, turn)
        self._call = calls.call

    def __call__(self, job: bytes, execution: str) -> list[bytes]:
        return replaced(self._call, {self._job.encode(): job, self._execution.encode(): execution.encode()})


class Box:
    """One worker with a device. `number` makes its name unique. `server`: for what it says of itself once."""

    def __init__(
        self, server: redis.Redis, url: str, number: int, device: Device, ledger: Ledger, finish: Finish
    ) -> None:
        self._url, self._device, self._ledger, self._finish = url, device, ledger, finish
        self._name = f"{os.uname().nodename}-{os.getpid()}-{number:06x}"
        self._queue = keys.queue(MODEL)
        self._calls = Calls(REPLIES)
        fake: Any = self._calls
        self._store = JobStore(fake, fake, SETTINGS, self._name)
        self._places = asyncio.Semaphore(device.slots + LOOK_AHEAD)
        self._claims: dict[str, Claim] = {}
        self._record = self._what_it_says(server)

    def _what_it_says(self, server: redis.Redis) -> list[Argument]:
        """The call of a beat that renews the worker's record."""
        engine: Any = SimpleNamespace(
            card=ModelCard(name=MODEL, context=2048, min_pixels=3136, max_pixels=602112), slots=self._device.slots,
            device="null runner",
        )
        scheduler: Any = SimpleNamespace(running=0, counts=SimpleNamespace(generation_tokens=0))
        worker = SimpleWorker([self._queue], name=self._name, connection=server, serializer=Serializer)
        worker.birth_date = now()
        registration = Registration(server, engine, scheduler, SystemdNotifier(), self._name, (MODEL,))
        calls: Any = Calls(REPLIES)
        with server.pipeline() as pipeline:
            register(worker, "busy", pipeline)
            registration.beat(pipeline)
            write(pipeline, calls)
        return calls.call  # type: ignore[no-any-return]

    async def run(self) -> None:
        """Serves until it is cancelled."""
        links = [await Link.connect(self._url) for _ in range(3)]
        self._waiting, self._link, hears = links
        try:
            await hears.ask("SUBSCRIBE", f"rq:pubsub:{self._name}")
            await self._say()
            async with asyncio.TaskGroup() as tasks:
                for role in (self._device.run(), self._beat(), self._take(tasks)):
                    tasks.create_task(role)
        finally:
            for link in links:
                link.close()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        empty = False
        while True:
            await self._places.acquire()
            while True:
                if empty:
                    await self._waiting.ask("BLPOP", keys.bell(self._queue), _BELL_SECONDS)
                execution = new_execution()
                self._store.claim([self._queue], execution, time.time(), idle=empty)
                reply = await self._waiting.ask(*self._calls.call)
                empty = not reply or not reply[3]
                if reply:
                    break
            job, attempt = reply[0], reply[2]
            claim = Claim(job.decode(), self._queue, execution, attempt, not empty, False, {}, {}, ())
            self._claims[claim.lease] = claim
            tasks.create_task(self._work(claim))

    async def _work(self, claim: Claim) -> None:
        self._ledger.claim(claim.job)
        await self._device.answer()
        if await self._link.ask(*self._finish(claim.job.encode(), claim.execution)) == 1:
            self._ledger.end(claim.job)
        del self._claims[claim.lease]
        self._places.release()

    async def _beat(self) -> None:
        for beat in count(1):
            await asyncio.sleep(BEAT_SECONDS)
            if self._claims:
                self._store.renew(list(self._claims.values()))
                lost, _ = await self._link.ask(*self._calls.call)
                if any(lease.decode() in self._claims for lease in lost):
                    raise TooBusy("A box came too late to renew its leases: this machine has too much else to do.")
            if beat % _RECORD_BEATS == 0:
                await self._say()
            if self._claims or beat % 2:
                self._store.recover([self._queue])
                await self._link.ask(*self._calls.call)

    async def _say(self) -> None:
        await self._link.ask(*self._record)


class Producers:
    """Submit jobs as the one that a `Submitter` submits, each with a clip of its own."""

    def __init__(
        self, job: Job, clips: dict[str, bytes], stamp: bytes, url: str, ledger: Ledger, links: int = 8
    ) -> None:
        """`stamp`: 16 bytes of the clip, which are replaced in each copy."""
        self._ids, self._ledger, self._url = IdFactory(), ledger, url
        self._job, ((digest, self._clip),) = job, clips.items()
        self._digest, self._stamp = digest.encode(), stamp
        calls = Calls(REPLIES)
        fake: Any = calls
        Submitter(fake, SETTINGS).submit(job, clips, inbox=self._ids.mark, keep=False, now=job.submitted_at)
        self._call = calls.call
        self._links, self._next = links, count()
        self._open: list[asyncio.Task[Link]] = []
        self._begun: set[asyncio.Task[None]] = set()  # including those that failed

    async def submit(self) -> None:
        self._ledger.submitted += 1
        now = time.time()
        job = self._ids.new(now)
        if len(self._open) < self._links:
            self._open.append(asyncio.create_task(Link.connect(self._url)))
        link = await self._open[next(self._next) % len(self._open)]
        clip = self._clip.replace(self._stamp, os.urandom(8).hex().encode(), 1)
        said = self._job.submitted_at
        self._ledger.submitted_at[job] = time.monotonic()
        await link.ask(*replaced(self._call, {
            self._job.id.encode(): job.encode(), self._digest: hashlib.sha256(clip).hexdigest().encode(),
            self._clip: clip, at(said).encode(): at(now).encode(), str(said).encode(): str(now).encode(),
        }))

    async def keep_waiting(self, jobs: int) -> None:
        """Keeps this number of jobs waiting, until it is cancelled."""
        while True:
            for _ in range(jobs - self._ledger.waiting):
                self._begin()
            await asyncio.sleep(0.01)

    async def offer(self, rate: float) -> None:
        """Submits `rate` jobs per second at random times, until it is cancelled."""
        loop, chance = asyncio.get_running_loop(), random.Random(0)
        at = loop.time()
        while True:
            at += chance.expovariate(rate)
            await asyncio.sleep(at - loop.time())
            self._begin()

    async def finish(self) -> None:
        """Until what was begun is submitted."""
        await asyncio.gather(*self._begun)
        for link in self._open:
            (await link).close()

    def _begin(self) -> None:
        task = asyncio.create_task(self.submit())
        self._begun.add(task)
        task.add_done_callback(lambda done: done.exception() or self._begun.discard(done))


def job_of(messages: Sequence[Any], tokens: int) -> Job:
    """A job as a client makes it."""
    now = time.time()
    job = IdFactory().new(now)
    return Job(id=job, conversation=job, model=MODEL, messages=tuple(messages), submitted_at=now,
               options=GenerationOptions(max_new_tokens=tokens))


def teach(server: redis.Redis) -> None:
    """Loads the scripts into the server."""
    for name in REPLIES:
        server.script_load(text(name))
