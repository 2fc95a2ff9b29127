"""RQ's own tools on sailq's jobs: each cell of the table in deploy/redis/README.md, and tools that only read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from farm import NullWorker
from looking_tools import PACKAGES
from rq import Queue, Worker
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.suspension import resume, suspend

from sailq.producer.client import Client, JobHandle
from sailq.producer.replies import LOOK_SECONDS
from sailq.shared import keys
from sailq.shared.errors import NotFound
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import FramesPart, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.rqjob import Serializer
from sailq.shared.settings import Settings
from sailq.worker.queue import job_store
from sailq.worker.queue.job_store import JobStore

QUEUE = "sailq3-sailq-tiny"
SHORT = {"max_new_tokens": 2}
LONG = {"max_new_tokens": 2000}
"""100 s on a slow worker, which its tests never wait for."""
SLOW_WORKER = ("--decode-ms", "50")
FAILING_WORKER = ("--failing-prompt", "200")
WAIT = 90.0
ROOT = Path(__file__).parents[2]
LOOKING_TOOLS = ROOT / "tests" / "looking_tools.py"
Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


def said(text: str = "Hello.") -> Prepared:
    return Prepared((Message(role="user", content=(TextPart(text=text),)),), {}, 0)


def shown(text: str = "Describe it.") -> Prepared:
    digest, blob = encode_frames(np.random.default_rng(3).integers(0, 255, (4, 84, 84, 3), np.uint8))
    part = FramesPart(type="video", blob=digest, frames=4, height=84, width=84)
    return Prepared((Message(role="user", content=(part, TextPart(text=text))),), {digest: blob}, 0)


@pytest.fixture
def queue(connection: redis.Redis) -> Queue:
    return Queue(QUEUE, connection=connection, serializer=Serializer)


class Scene:
    """A turn of a conversation with a clip, in one state, a turn after it, and a client that waits for the first."""

    def __init__(self, state: str, client: Client, queue: Queue, start: Start, eventually: Eventually) -> None:
        self.state, self.client, self.queue, self.start = state, client, queue, start
        self.eventually, self.worker = eventually, None
        if state == "deferred":
            self.submit(said(), SHORT)
        text = "Describe it. " * 200 if state == "failed" else "Describe it."
        self.job = self.submit(shown(text), LONG if state == "running" else SHORT).job
        if state == "running":
            self.worker = start(*SLOW_WORKER)
            eventually(lambda: self.status() == "started")
        if state == "failed":
            self.worker = start(*FAILING_WORKER)
            assert client.wait(self.job, WAIT).error.code == "internal"
            assert self.status() == "failed"
        if state == "finished":
            queue.connection.hset(keys.job(self.job), "result_ttl", 500)  # the state after RQ's own enqueue
            self.worker = start()
            assert client.wait(self.job, WAIT).error is None
        self.next = self.submit(said("And then?"), SHORT).job
        self._pool = ThreadPoolExecutor(1)
        self.waiting = self._pool.submit(self._wait)

    def submit(self, prepared: Prepared, options: dict[str, Any]) -> JobHandle:
        return self.client.submit_prepared(prepared, conversation="talk", options=options, keep=False)

    def status(self) -> str:
        return (self.queue.connection.hget(keys.job(self.job), "status") or b"gone").decode()

    def fetch(self) -> Job:
        return Job.fetch(self.job, connection=self.queue.connection, serializer=Serializer)

    def serve(self) -> None:
        """Starts a worker unless one runs."""
        if self.worker is None:
            self.worker = self.start()

    def _wait(self) -> str:
        with Client(self.client.settings.redis_url) as client:
            try:
                result = client.wait(self.job, WAIT)
            except NotFound:
                return "NotFound"
        return result.finish_reason if result.error is None else result.error.code

    def close(self) -> None:
        self._pool.shutdown()


def requeue(scene: Scene) -> None:
    if scene.state != "failed":
        with pytest.raises(InvalidJobOperation):
            scene.queue.failed_job_registry.requeue(scene.job)
        return
    assert scene.waiting.result(WAIT) == "internal"
    scene.worker.kill()
    scene.queue.failed_job_registry.requeue(scene.job)
    assert scene.status() == "queued"
    scene.start()
    scene.eventually(lambda: (found := scene.client.result(scene.job)) and found.error is None)


def empty(scene: Scene) -> None:
    scene.queue.empty()


def suspended(scene: Scene) -> None:
    suspend(scene.queue.connection)
    before = scene.status()
    scene.serve()
    if scene.state in {"waiting", "deferred"}:
        time.sleep(2.5)  # more than the second within which a worker takes what waits
        assert scene.status() == before and not scene.waiting.done()
    else:
        assert scene.status() == before
    resume(scene.queue.connection)


def resumed(scene: Scene) -> None:
    resume(scene.queue.connection)


def delete(scene: Scene) -> None:
    scene.fetch().delete()


def cancel(scene: Scene) -> None:
    scene.fetch().cancel()


ANSWER = "length"
UNTOUCHED = {"waiting": ANSWER, "deferred": ANSWER, "failed": "internal", "finished": ANSWER}
GETS: dict[Callable[[Scene], None], dict[str, str]] = {
    requeue: {**UNTOUCHED},
    empty: {**UNTOUCHED, "waiting": "NotFound"},
    suspended: {**UNTOUCHED},
    resumed: {**UNTOUCHED},
    delete: {**UNTOUCHED, "waiting": "NotFound", "deferred": "NotFound", "running": "NotFound"},
    cancel: {**UNTOUCHED, "waiting": "cancelled", "deferred": "cancelled", "running": "cancelled"},
}
"""What a waiting client gets. A running job that is not named here runs on."""
ENDS = {requeue: "gone", delete: "gone", cancel: "canceled"}
"""What RQ says of a failed job afterwards, where it does not stay failed."""


@pytest.mark.proof
@pytest.mark.parametrize("state", ["waiting", "deferred", "running", "failed", "finished"])
@pytest.mark.parametrize("tool", list(GETS), ids=lambda tool: tool.__name__)
def test_what_each_tool_does_to_a_job(
    tool: Callable[[Scene], None], state: str, client: Client, queue: Queue, start_null: Start,
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(state, client, queue, start_null, eventually)
    if state in {"failed", "finished"}:
        assert client.wait(scene.next, WAIT).error is None
    tool(scene)
    began = time.monotonic()
    if state == "running" and "running" not in GETS[tool]:  # it continues to run
        assert scene.status() == "started" and client.cancel(scene.job) == "running"
        assert scene.waiting.result(WAIT) == "cancelled"
    else:
        if GETS[tool].get(state) != "NotFound":
            scene.serve()
        assert scene.waiting.result(WAIT) == GETS[tool][state]
        if GETS[tool][state] == "NotFound":  # deletion notifies waiting clients at once, even without a worker
            assert time.monotonic() - began < 5 * LOOK_SECONDS
    scene.serve()
    assert client.wait(scene.next, WAIT).finish_reason == ANSWER, "the next turn goes on"
    if state == "failed":
        assert scene.status() == ENDS.get(tool, "failed")

    monkeypatch.setattr(job_store, "_SWEEP_SECONDS", 1)
    sweeper = JobStore(client.connection, client.connection, Settings(), "sweeper")

    def held() -> int:
        client.connection.delete("sailq:looked", "sailq:last-look")
        sweeper.recover([QUEUE])
        return int(client.connection.get(keys.CLIP_BYTES) or 0)

    if scene.status() in {"failed", "canceled"} and state == "failed":
        assert held() > 0, "a failed job keeps its clips"
    else:
        eventually(lambda: held() == 0)
    scene.close()


@pytest.mark.proof
@pytest.mark.alone
def test_tools_that_only_read_neither_end_nor_duplicate_a_job(
    redis_url: str, client: Client, queue: Queue, start_null: Start, eventually: Eventually, tmp_path: Path
) -> None:
    jobs, kills = 400, 5
    handles = [client.submit_prepared(said(f"Number {number}."), options={"max_new_tokens": 40})
               for number in range(jobs)]
    workers = [start_null("--slots", "4", "--decode-ms", "20") for _ in range(2)]
    with ExitStack() as stack:
        looking = []
        for tool, seconds in product(PACKAGES, (-60, -10, 10, 60)):
            log = tmp_path / f"{tool}{seconds}.log"
            command = [environment(tool), LOOKING_TOOLS, tool, redis_url, QUEUE, str(seconds)]
            with log.open("w") as output:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.kill)
            looking.append((process, log))
        for process, log in looking:
            eventually(lambda process=process, log=log: "looked" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
        spent = 0
        for kill in range(kills):
            eventually(lambda kill=kill: results_there(client) >= 20 * (kill + 1) and jobs_of(workers[0], client))
            victim = workers.pop(0)
            victim.signal(signal.SIGSTOP)
            in_hand = jobs_of(victim, client)
            spent += len(in_hand)
            victim.kill()
            workers.append(start_null("--slots", "4", "--decode-ms", "20", ready=False))
            # Wait for the results of these jobs, so that no job loses three workers and is given up.
            eventually(lambda in_hand=in_hand: all(client.connection.exists(keys.result(job)) for job in in_hand))
        results = dict(client.as_completed([handle.job for handle in handles], WAIT))
        looks = []
        for process, log in looking:
            assert process.poll() is None, log.read_text()
            looks.append(log.read_text().count("looked"))
    attempts = sum(result.attempt for result in results.values())
    print(f"\nfigure: tools looked {sum(looks)} times, clocks off by 10 and 60 s both ways, {kills} workers killed: "
          f"{len(results)} of {jobs} results, {attempts} attempts, {jobs + spent} with those that the kills cost")
    assert len(results) == jobs and all(result.error is None for result in results.values())
    assert attempts <= jobs + spent and min(looks) >= 5
    assert len(queue.started_job_registry.get_job_ids(cleanup=False)) == len(queue) == 0


def environment(tool: str) -> Path:
    """The Python of the environment that holds this tool; made when first asked for, and kept."""
    env = ROOT / f".venv-rq-{tool}"
    if not (env / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(env)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES[tool]], check=True)
        (env / "made").touch()
    return env / "bin/python"


def results_there(client: Client) -> int:
    return len(client.connection.keys(keys.result("*")))


def jobs_of(worker: NullWorker, client: Client) -> list[str]:
    """The jobs that a stopped worker has in hand."""
    leases = [lease.decode() for lease in client.connection.zrange(keys.LEASES, 0, -1)]
    names = [client.connection.hget(f"rq:execution:{lease}", "worker_name") or b"" for lease in leases]
    return [lease.rpartition(":")[0] for lease, name in zip(leases, names, strict=True)
            if f"-{worker.pid}-".encode() in name]


def test_a_worker_whose_record_was_deleted_registers_again(
    connection: redis.Redis, start_null: Start, eventually: Eventually
) -> None:
    """As after a restart without data, or if another worker swept while this one was disconnected."""
    start_null()
    eventually(lambda: len(Worker.all(connection=connection)) == 1)
    connection.flushdb()
    eventually(lambda: len(Worker.all(connection=connection)) == 1)
    (seen,) = Worker.all(queue=Queue("sailq3-sailq-tiny", connection=connection))
    assert seen.birth_date and seen.pid and seen.get_state() == "idle"


@pytest.mark.proof
def test_a_flushed_server_gets_the_cards_of_models_again(
    client: Client, start_null: Start, eventually: Eventually
) -> None:
    start_null(SAILQ_ALIAS="another")
    eventually(lambda: len(client.models()) == 2)
    client.connection.flushdb()
    eventually(lambda: [card.name for card in client.models()] == ["another", "sailq-tiny"])
