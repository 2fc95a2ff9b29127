"""Real sentinels replace a lost primary: acknowledged jobs are kept, and no process restarts."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from answering import Answerer
from examined import doctor
from farm import NullWorker
from null_jobs import submit
from sentinels import NAME, Sentinels, wait_until

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.connection import connect, server_errors
from sailq.shared.errors import NotReplicated, SailqError, ServerUnavailable
from sailq.shared.jobs import Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.settings import Settings

Start = Callable[..., NullWorker]
HELLO = Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)
KILLS, JOBS, TALKS, TOKENS = 5, 400, 100, 60
RESUMED_SECONDS = 10.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as sentinels:
        yield sentinels


@pytest.fixture
def empty(shared: Sentinels) -> Sentinels:
    """The primary has no data and two replicas."""
    wait_until(lambda: shared.replicas() == 2)
    with connect(shared.url("admin")) as admin:
        admin.flushall()
    return shared


def why(url: str) -> str:
    with connect(url, retries=0) as connection, pytest.raises(ServerUnavailable) as error, server_errors(connection):
        connection.ping()
    return str(error.value)


@pytest.mark.proof
def test_errors_in_finding_a_primary_show_no_secrets(empty: Sentinels) -> None:
    url, password, own = empty.url("admin"), empty.password("admin"), empty.password("sentinels")
    hosts = url.partition("@")[2].partition("/")[0]
    said = {
        "sentinels": why(url.replace(hosts, "127.0.0.1:1,127.0.0.1:2")),
        "name": why(url.replace(f"/{NAME}/", "/nobody/")),
        "sentinel_password": why(url.replace(own, "wr0ng")),
        "password": why(url.replace(f":{password}@", ":wr0ng@")),
    }
    assert all("127.0.0.1" in text for text in said.values())
    assert "'nobody'" in said["name"] and "login" in said["password"]
    assert not any(secret in text for text in said.values() for secret in (password, own, "wr0ng"))


def test_doctor_says_why_no_primary_is_found(empty: Sentinels) -> None:
    url, own = empty.url("admin"), empty.password("sentinels")
    hosts = url.partition("@")[2].partition("/")[0]
    for wrong, fact, fix in (
        (url.replace(hosts, "127.0.0.1:1"), "No sentinel answers at 127.0.0.1:1", "ping"),
        (url.replace(f"/{NAME}/", "/nobody/"), f"watches {NAME}, and not nobody", f"/{NAME}/"),
        (url.replace(own, "wr0ng"), "refuses the login", ".env"),
    ):
        found = doctor("--metrics-port", 0, url=wrong)["server"]
        assert found.state == "wrong" and fact in found.what and fix in (found.fix or ""), found
        shown = found.what + (found.fix or "")
        assert not any(secret in shown for secret in (own, empty.password("admin"), "wr0ng"))


def switch(sentinels: Sentinels) -> None:
    """A failover that an administrator asks for; returns when a majority of the sentinels knows the new primary."""
    before = sentinels.primary()
    sentinels.fail_over()
    wait_until(lambda: sentinels.primary() != before)


def until_accepted(client: Client, job: str | None = None) -> str:
    """Submits a job until it is acknowledged; one that was perhaps written is sent again with the same id."""
    job = job or client._ids.new(time.time())
    while True:
        with suppress(ServerUnavailable, NotReplicated):
            return client.submit_prepared(HELLO, options={"max_new_tokens": TOKENS}, job=job).job
        time.sleep(0.2)


def test_a_submission_that_was_not_replicated_is_repeated_with_its_id(empty: Sentinels) -> None:
    replicas = [port for port in empty.servers if port != empty.primary()]
    settings = Settings(redis_url=empty.url("admin"), sync_replicas=1)
    with Client(settings=settings) as client, Client(settings=settings) as other:
        other.inbox.keep(other.connection)  # the connection's last write is older than the job, and replicated
        assert other.connection.wait(2, 5000) == 2
        for port in replicas:
            empty.signal(port, signal.SIGSTOP)
        try:
            with pytest.raises(NotReplicated, match="0 of 1 replicas") as error:
                submit(client, 5)
            with pytest.raises(NotReplicated) as again:
                other.submit_prepared(HELLO, job=error.value.job)
        finally:
            for port in replicas:
                empty.signal(port, signal.SIGCONT)
        assert again.value.job == error.value.job
        assert until_accepted(client, error.value.job) == error.value.job
        queue = keys.waiting(keys.queue(client.settings.model))
        assert client.connection.lrange(queue, 0, -1) == [error.value.job.encode()]
        Answerer(client.connection).answer(error.value.job, "Hi")
        assert client.submit_prepared(HELLO, job=error.value.job).job == error.value.job
        assert not client.connection.exists(queue)


def test_a_result_that_was_not_replicated_is_written_again(empty: Sentinels, start_null: Start) -> None:
    url = empty.url("admin")
    worker = start_null("--decode-ms", "20", url=url, SAILQ_SYNC_REPLICAS="1")
    replicas = [port for port in empty.servers if port != empty.primary()]
    with Client(url) as client:
        client.connection.xgroup_create(keys.RESULTS, "reader", mkstream=True)
        try:
            job = submit(client, 50)
            next(iter(client.stream(job, 60)))
            for port in replicas:
                empty.signal(port, signal.SIGSTOP)
            wait_until(lambda: f"{job}: its result is kept" in worker.log.read_text())
        finally:
            for port in replicas:
                empty.signal(port, signal.SIGCONT)
        other = submit(client, 5)
        assert client.wait(other, 60).error is None and client.wait(job, 60).error is None
        wait_until(lambda: client.connection.xlen(keys.RESULTS) == 2)
        assert not client.connection.exists(keys.LEASES)


def test_clients_and_a_worker_go_on_after_a_failover(empty: Sentinels, start_null: Start) -> None:
    go_on_after_a_failover(empty, start_null)


@pytest.mark.proof
def test_with_tls_and_debians_redis_they_go_on_after_a_failover(tmp_path: Path, start_null: Start) -> None:
    with Sentinels(tmp_path, tls=True) as sentinels:
        url = sentinels.url("admin")
        assert url.startswith("rediss+sentinel://")
        found = doctor("--metrics-port", 0, url=re.sub("ssl_ca_certs=[^&]*&", "", url))["server"]
        assert "certificate" in found.what and "ssl_ca_certs=" in (found.fix or ""), found
        go_on_after_a_failover(sentinels, start_null)


def go_on_after_a_failover(sentinels: Sentinels, start_null: Start) -> None:
    url = sentinels.url("admin")
    worker = start_null("--decode-ms", "5", url=url)

    async def story() -> None:
        async with AsyncClient(url) as client:
            assert (await client.wait((await client.submit_prepared(HELLO)).job, 60)).error is None
            before = sentinels.primary()
            switch(sentinels)
            job = await asyncio.to_thread(until_accepted, client._client)
            while True:
                with suppress(ServerUnavailable):
                    assert (await client.wait(job, 60)).error is None
                    break
            assert sentinels.primary() != before

    asyncio.run(story())
    with Client(url) as client:
        assert client.wait(submit(client, 5), 60).error is None
        running = submit(client, 2000)
        next(iter(client.stream(running, 60)))
        assert client.cancel(running) == "running"  # the worker receives commands through the new primary
        assert client.wait(running, 60).finish_reason == "cancelled"
    assert worker.alive


@pytest.mark.proof
def test_a_failover_replaces_a_primary_that_hangs(tmp_path: Path, start_null: Start) -> None:
    """Its connections stay open and silent, as if its network were cut."""
    with Sentinels(tmp_path) as sentinels, Client(sentinels.url("admin")) as client:
        worker = start_null("--decode-ms", "5", url=sentinels.url("admin"))
        assert client.wait(submit(client, 5), 60).error is None
        primary = sentinels.primary()
        sentinels.signal(primary, signal.SIGSTOP)
        failover = wait_until(lambda: sentinels.primary() not in {0, primary})
        began = time.monotonic()
        with Client(sentinels.url("admin")) as other:
            job = until_accepted(other)
            assert other.wait(job, 60).error is None
        print(f"\nfigure: the primary hung: failover {failover:.1f} s, a new job's result "
              f"{time.monotonic() - began:.1f} s later")
        sentinels.signal(primary, signal.SIGCONT)
        wait_until(lambda: sentinels.replicas() == 2)
        assert client.wait(until_accepted(client), 60).error is None and worker.alive


class Producer(threading.Thread):
    """Submits jobs whatever the servers do, each until it is acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.acknowledged: list[str] = []
        self.refused = {"not_replicated": 0, "server_unavailable": 0}
        self.allowed = threading.Semaphore(0)
        self._url = url

    def run(self) -> None:
        with Client(settings=Settings(redis_url=self._url, sync_replicas=1)) as client:
            for number in range(JOBS):
                self.allowed.acquire()
                job = client._ids.new(time.time())
                while len(self.acknowledged) == number:
                    try:
                        client.submit_prepared(HELLO, options={"max_new_tokens": TOKENS}, job=job,
                                               conversation=f"c-{number % TALKS}")
                        self.acknowledged.append(job)
                    except (ServerUnavailable, NotReplicated) as error:
                        self.refused[error.code] += 1
                        time.sleep(0.1)


@pytest.mark.proof
@pytest.mark.alone
@pytest.mark.timeout(1200)
def test_5_kills_of_the_primary_lose_and_duplicate_no_job(tmp_path: Path, start_null: Start) -> None:
    """A submission and a result wait for one replica. Each killed server comes back, as a replica."""
    with Sentinels(tmp_path) as sentinels, connect(sentinels.url("admin")) as admin:
        url = sentinels.url("admin")
        workers = [start_null("--decode-ms", "20", "--slots", "4", url=url, SAILQ_SYNC_REPLICAS="1") for _ in range(3)]
        admin.xgroup_create(keys.RESULTS, "reader", mkstream=True)
        producer = Producer(url)
        producer.start()
        failovers, resumed = [], []
        for kill in range(KILLS):
            producer.allowed.release(JOBS // KILLS)
            wait_until(lambda: len(producer.acknowledged) >= JOBS // KILLS * kill + 40)  # noqa: B023
            primary = sentinels.primary()
            sentinels.kill(primary)
            failovers.append(wait_until(lambda: sentinels.primary() not in {0, primary}))  # noqa: B023
            before = wait_for_answer(lambda: len(admin.keys(keys.result("*"))))
            resumed.append(wait_until(
                lambda: wait_for_answer(lambda: len(admin.keys(keys.result("*")))) > before  # noqa: B023
            ))
            sentinels.start_server(primary)
            wait_until(lambda: sentinels.replicas() == 2)
            assert sentinels.server(primary).info("replication")["role"] == "slave"  # noqa: B023
        producer.join()
        with Client(url) as client:
            lost = []
            for job in producer.acknowledged:
                try:
                    result = client.wait(job, 120)
                    assert result.error is None and result.usage.completion_tokens == TOKENS, result
                except SailqError:
                    lost.append(job)
            turns = [turn.job for number in range(TALKS) for turn in client.history(f"c-{number}")]
            ended = [fields[b"job"].decode() for _, fields in client.connection.xrange(keys.RESULTS)]
        doubled = len(turns) - len(set(turns)) + len(ended) - len(set(ended))
        print(f"\nfigure: the primary killed {KILLS} times in {len(producer.acknowledged)} acknowledged jobs: "
              f"{len(lost)} lost, {doubled} doubled; failovers {', '.join(f'{s:.1f}' for s in failovers)} s, first "
              f"result {', '.join(f'{s:.1f}' for s in resumed)} s later; refused meanwhile: {producer.refused}")
        assert not lost and not doubled and set(turns) == set(ended) == set(producer.acknowledged)
        assert max(resumed) < RESUMED_SECONDS
        assert all(worker.alive for worker in workers)


def wait_for_answer(question: Callable[[], int]) -> int:
    while True:
        with suppress(redis.RedisError):
            return question()
        time.sleep(0.1)
