"""deploy/redis: what each of the server's users may do there, with real passwords, commands and a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import redis
import yaml
from acl_server import DEPLOY, Server
from asking import LONG_ANSWER
from commands import invoke, living
from gateways import gateway
from redis.exceptions import NoPermissionError
from rq.job import Job as RQJob
from rq.queue import Queue
from scraping import exporter

from sailq.operators.fleet import Fleet
from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.producer.demo import set_up
from sailq.producer.gateway.keys import make_key
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.connection import connect, server_errors
from sailq.shared.errors import ServerUnavailable
from sailq.shared.jobs import Result
from sailq.shared.rqjob import FUNCTION, Serializer
from sailq.shared.settings import Settings
from sailq.worker.queue.job_store import JobStore, new_execution

ROOT = Path(__file__).parents[2]
USERS = ("admin", "producer", "worker", "reader")
QUEUE = "rq:queue:sailq3-sailq-tiny"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("secrets"))
    with server.running():
        yield server


@pytest.fixture(scope="module")
def logs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The logs of a worker that `sailq demo` or `sailq bench` would start; it serves while they are there."""
    folder = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        set_up(stack, redis_url=server.url("worker"), model="sailq-tiny", logs=folder, say=lambda _: None,
               worker_options=["--threads", "1"])
        yield folder


@pytest.fixture
def refused(server: Server) -> Iterator[Callable[[], set[tuple[str, str]]]]:
    """(user, command or key) of what the server has refused since the test began."""
    with server.connect("admin") as admin:
        admin.acl_log_reset()
        yield lambda: {(entry["username"], entry["object"]) for entry in admin.acl_log()}


def no_secret(server: Server, text: str) -> bool:
    return not any(password in text for user in USERS for password in server.passwords(user))


def ask(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


# Each user may do what it needs.


def test_a_producers_commands_work(
    server: Server, logs: Path, refused: Callable[[], set[tuple[str, str]]], tmp_path: Path
) -> None:
    list(write_samples(7, 2, tmp_path / "samples"))
    image = next((tmp_path / "samples").rglob("*.png"))
    for arguments, stdin in (
        (["ask", "--image", image, "--prompt", "What is it?", "--stream"], ""),
        (["chat", "--image", image], "What is it?\nWhich colour?\n/clear\nq\n"),
        (["caption", image, "--out", tmp_path / "out.jsonl"], ""),
    ):
        done = invoke(*arguments, url=server.url("producer"), stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert no_secret(server, done.stdout + done.stderr)
    assert refused() == set()


def test_a_producers_client_works(server: Server, logs: Path, refused: Callable[[], set[tuple[str, str]]]) -> None:
    async def asyncio_client() -> str:
        async with AsyncClient(server.url("producer")) as client:
            handle = await client.submit(ask("Hello"), stream=True)
            text = "".join([chunk.text async for chunk in client.stream(handle.job)])
            assert text == (await client.wait(handle.job, timeout=30)).text
            return text

    with Client(server.url("producer")) as client:
        turns = [client.submit(ask("Hello"), conversation="talk", priority="high") for _ in range(3)]
        assert {job for job, _ in client.as_completed([turn.job for turn in turns], timeout=30)} == {
            turn.job for turn in turns
        }
        assert client.history("talk") and client.models() and client.cancel(turns[0].job) == "finished"
        client.clear("talk")
        assert client.submit(ask("Hello"), job=turns[0].job).job == turns[0].job  # sent again
        running = client.submit(ask("Hello"), options=LONG_ANSWER, stream=True)
        next(iter(client.stream(running.job, timeout=30)))
        assert client.cancel(running.job) == "running"
        assert client.wait(running.job, timeout=30).finish_reason == "cancelled"
        nobodys = {"model": "nobody-serves-it", "conversation": "waits"}
        waiting = [client.submit(ask("Hello"), timeout=60, **nobodys) for _ in range(2)]
        assert [client.cancel(turn.job) for turn in waiting] == ["cancelled"] * 2
    assert asyncio.run(asyncio_client())
    assert refused() == set()


def test_a_producer_with_only_rq_works(
    server: Server, logs: Path, refused: Callable[[], set[tuple[str, str]]], eventually: Callable[..., None]
) -> None:
    with server.connect("producer") as producer:
        queue = Queue(keys.queue("sailq-tiny"), connection=producer, serializer=Serializer)
        first = queue.enqueue(FUNCTION, messages=ask("Hello"))
        second = queue.enqueue(FUNCTION, messages=ask("Hello"), depends_on=first, at_front=True)
        for job in (first, second):
            eventually(lambda job=job: job.get_status() == "finished")
            assert job.return_value()["finish_reason"] in {"stop", "length"}
        unserved = Queue(keys.queue("nobody-serves-it"), connection=producer, serializer=Serializer)
        waiting = [unserved.enqueue(FUNCTION, messages=ask("Hello")) for _ in range(2)]
        waiting[0].cancel()
        assert waiting[0].get_status() == "canceled" and waiting[1].get_status() == "queued"
        running = queue.enqueue(FUNCTION, messages=ask("Hello"), options=LONG_ANSWER)
        eventually(lambda: running.get_status() == "started")
        running.cancel()
        assert running.get_status() == "canceled"
        with Client(server.url("producer")) as client:
            assert client.wait(running.id, timeout=60).finish_reason == "cancelled"
    assert refused() <= {("producer", "info")}  # RQ asks for the server's version, but works without it
    with server.connect("reader") as reader:
        assert RQJob.fetch(waiting[1].id, connection=reader, serializer=Serializer).get_position() == 0


def test_a_gateway_works_as_a_producer(
    server: Server, logs: Path, refused: Callable[[], set[tuple[str, str]]], tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    secret, entry = make_key("cameras")
    entry["cameras"].update(rate=0.01, burst=6, max_queued=3)
    (tmp_path / "keys.json").write_text(json.dumps(entry))
    hello = {"model": "sailq-tiny", "messages": [{"role": "user", "content": "Hello"}]}
    options = {name: value for name, value in LONG_ANSWER.items() if name != "max_new_tokens"}
    with (
        gateway(server.url("producer"), tmp_path / "log", "--keys", tmp_path / "keys.json") as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=0) as client,
        server.connect("reader") as reader,
    ):
        jobs = keys.gateway_jobs(entry["cameras"]["sha256"])
        chat = client.chat.completions
        first, again = (chat.create(**hello, extra_headers={"Idempotency-Key": "once"}) for _ in range(2))
        assert first.choices[0].message.content and first.id == again.id
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chat.create(**hello, stream=True))
        eventually(lambda: not reader.zcard(jobs))
        with chat.create(**hello, **options, stream=True) as stream:
            left = next(iter(stream)).id.removeprefix("chatcmpl-")
            assert reader.zrange(jobs, 0, -1) == [left.encode()]
        eventually(lambda: not reader.zcard(jobs))
        with Client(server.url("reader")) as looking:
            assert looking.wait(left, timeout=60).finish_reason == "cancelled"
        assert [model.id for model in client.models.list()] == ["sailq-tiny"]
        assert urllib.request.urlopen(f"{running.url}/ready", timeout=30).status == 200
        with pytest.raises(openai.RateLimitError):
            for _ in range(6):
                chat.create(**hello)
        assert no_secret(server, running.log.read_text()) and secret not in running.log.read_text()
    assert refused() == set()


def test_a_producer_can_neither_claim_nor_finish_a_job(server: Server) -> None:
    settings = Settings(redis_url=server.url("producer"))
    with Client(settings=settings) as client, server.connect("worker") as worker:
        store = JobStore(client.connection, client.connection, settings, "mine")
        real = JobStore(worker, worker, settings, "real")
        job, queue = client.submit(ask("Hello"), model="nobody-serves-them").job, keys.queue("nobody-serves-them")
        with pytest.raises(redis.ResponseError, match="(?i)permission|user executing the script"):
            store.claim([queue], new_execution(), 1.0)
        claim = real.claim([queue], new_execution(), 1.0)
        assert claim and claim.job == job
        result = Result(job=job, conversation=job, turn=0, finish_reason="stop", finished_at=1.0)
        for call in (lambda: store.finish(job, claim.execution, result), lambda: store.release(claim, "x"),
                     lambda: store.renew([claim]), lambda: store.recover([queue])):
            with pytest.raises(redis.ResponseError, match="(?i)permission|user executing the script"):
                call()
        assert client.result(job) is None and real.finish(job, claim.execution, result)


def test_a_reader_sees_all(
    server: Server, logs: Path, refused: Callable[[], set[tuple[str, str]]], tmp_path: Path
) -> None:
    with Client(server.url("producer")) as client:
        job = client.submit(ask("Hello"), conversation="seen").job
        client.wait(job, timeout=30)
    done = invoke("status", "--json", "--memory", url=server.url("reader"))
    assert done.returncode == 0 and json.loads(done.stdout)["workers"], done.stderr
    with Client(server.url("reader")) as client:
        assert client.result(job) and list(client.stream(job)) == []
        assert "seen" in client.conversations() and client.history("seen")
    with exporter(server.url("reader"), tmp_path / "exporter.log") as look:
        assert look().value("sailq:server_up") == 1 and look().value("sailq:workers", model="sailq-tiny") == 1
    assert refused() == set()


# All other commands are refused.


@pytest.mark.parametrize("command", [
    "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET save x", "SHUTDOWN", "SAVE", "BGREWRITEAOF", "REPLICAOF a 1",
    "FUNCTION LOAD x", "FUNCTION LIST", "FUNCTION FLUSH", "FCALL f 0", "SCRIPT FLUSH", "SCRIPT KILL", "EVAL x 0",
    "ACL LIST", "ACL SETUSER producer +@all", "CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1000", "INFO",
    "MODULE LIST", "SWAPDB 0 1", "SET mine 1", "GET mine", "PUBLISH elsewhere x", "SUBSCRIBE elsewhere",
], ids=str)
@pytest.mark.parametrize("user", ["producer", "worker", "reader"])
def test_only_admin_may(user: str, command: str, server: Server) -> None:
    if (user, command) in {("worker", "INFO"), ("reader", "INFO")}:
        return
    with server.connect(user) as connection, pytest.raises(NoPermissionError):
        connection.execute_command(*command.split())


LISTS = (
    "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "MONITOR", "SUBSCRIBE rq:pubsub:w", "PSUBSCRIBE *", "PUBSUB CHANNELS",
    f"LRANGE {QUEUE} 0 -1", f"LINDEX {QUEUE} 0", f"LPOP {QUEUE}", f"LMOVE {QUEUE} {QUEUE} LEFT LEFT", f"SORT {QUEUE}",
    f"BLPOP {QUEUE} 1", "ZRANGE sailq:conversations 0 -1", "ZREVRANGE sailq:conversations 0 -1",
    "ZRANGE sailq:leases 0 -1", "ZRANGE sailq:clips 0 -1", "XREAD STREAMS sailq:results 0",
    "ZRANGE rq:wip:sailq3-sailq-tiny 0 -1", "ZRANGE rq:canceled:sailq3-sailq-tiny 0 -1",
    "ZRANGE rq:deferred:sailq3-sailq-tiny 0 -1", "ZRANGE rq:failed:sailq3-sailq-tiny 0 -1",
    "ZRANGE rq:finished:sailq3-sailq-tiny 0 -1", "SMEMBERS rq:queues", "HGETALL rq:worker:w",
    "LRANGE sailq:bell:sailq3-sailq-tiny 0 -1",
)
CLIPS = ("HGET sailq:clip:x data", "HGETALL sailq:clip:x", "HVALS sailq:clip:x", "DUMP sailq:clip:x",
         "COPY sailq:clip:x sailq:result:x")
CLAIMS = ("ZADD sailq:leases 1 x:y", "ZREM sailq:leases x:y", "ZRANGE rq:wip:sailq3-sailq-tiny 0 9",
          "BLPOP sailq:bell:sailq3-sailq-tiny 1", "DEL rq:execution:x:y", "XADD sailq:results * a b",
          "ZADD rq:failed:sailq3-sailq-tiny 1 x", "ZREM rq:failed:sailq3-sailq-tiny x")
"""What only those do who run jobs, end them or put them back."""
FORGERIES = (
    f"DEL {QUEUE}", f"EXPIRE {QUEUE} 0", "DEL sailq:result:x", "SET sailq:model:m x", "SADD sailq:models m",
    "HSET sailq:worker:w pid 1", "ZADD sailq:workers 1 w", "SADD rq:workers w", "HSET rq:worker:w state busy",
    "SET rq:suspended 1", "RPUSH rq:queue:others x",
    "RENAME rq:job:a rq:job:b", "HSET rq:worker:w x y", "DEL rq:queue:others",
)


@pytest.mark.parametrize("command", [*LISTS, *CLIPS, *CLAIMS, *FORGERIES], ids=str)
def test_a_producer_may_not(command: str, server: Server) -> None:
    with server.connect("producer") as producer, pytest.raises(NoPermissionError):
        producer.execute_command(*command.split())


@pytest.mark.parametrize("command", ["KEYS *", "SCAN 0", f"LRANGE {QUEUE} 0 -1", "FLUSHALL", "HGET sailq:clip:x data"])
def test_a_producers_script_has_only_the_producers_rights(command: str, server: Server) -> None:
    words = ", ".join(f"'{word}'" for word in command.split())
    with server.connect("producer") as producer:
        script = producer.register_script(f"return redis.call({words})")
        with pytest.raises(redis.ResponseError, match="(?i)permission|user executing the script"):
            script()


@pytest.mark.parametrize("command", [
    "SET sailq:result:x 1", "DEL sailq:result:x", "EXPIRE sailq:result:x 1", "XADD sailq:stream:x * a b",
    "HSET rq:job:x cancel 1", f"RPUSH {QUEUE} x", f"LPOP {QUEUE}", "GETDEL sailq:result:x", "PUBLISH rq:pubsub:w x",
    "SCRIPT LOAD x", "EVALSHA x 0", "SUBSCRIBE rq:pubsub:w",
], ids=str)
def test_a_reader_may_not_write(command: str, server: Server) -> None:
    with server.connect("reader") as reader, pytest.raises(NoPermissionError):
        reader.execute_command(*command.split())


def test_another_clients_result_can_be_read_only_by_its_id(server: Server, logs: Path) -> None:
    with Client(server.url("producer")) as one, Client(server.url("producer")) as other:
        handle = one.submit(ask("Hello"))
        text = one.wait(handle.job, timeout=30).text
        with pytest.raises(ServerUnavailable, match="zrevrange"):
            other.conversations()
        with pytest.raises(ServerUnavailable):
            Fleet(other.connection).snapshot()
        result = other.result(handle.job)
        assert result is not None and result.text == text  # deploy/redis/README.md describes ids


def test_clients_without_a_user_name_have_no_rights(server: Server) -> None:
    with (
        connect(f"redis://127.0.0.1:{server.port}/0", retries=0) as connection,
        pytest.raises(ServerUnavailable, match="Authentication required[.]$"),
        server_errors(connection),
    ):
        connection.ping()


# Secrets.


def test_no_password_is_visible(server: Server, logs: Path) -> None:
    for user in USERS:
        (password,) = server.passwords(user)
        assert not living(password)
        assert len(password) == 48 and (server.secrets / f"{user}.env").stat().st_mode & 0o077 == 0
    done = invoke("ask", "--prompt", "x", url=server.url("producer").replace("@", "x@"))
    assert done.error and done.error.code == "server_unavailable" and done.stderr == f"sailq: {done.error}\n"
    assert no_secret(server, done.stderr)
    for file in [*logs.iterdir(), server.secrets / "server.log", server.secrets / "users.acl"]:
        assert no_secret(server, file.read_text(errors="replace")), file
    assert "takes jobs" in (logs / "worker.log").read_text()


def test_both_passwords_are_accepted_while_one_is_replaced(server: Server) -> None:
    before, file = server.url("producer"), server.secrets / "producer.password"

    def taken(url: str) -> bool:
        try:
            with connect(url, retries=0) as connection:
                return bool(connection.ping())
        except redis.AuthenticationError:
            return False

    def load() -> None:
        server.make_users()
        with server.connect("admin") as admin:
            admin.acl_load()

    with file.open("a") as passwords:
        passwords.write("a9" * 24 + "\n")
    load()
    assert server.url("producer") != before and taken(server.url("producer")) and taken(before)
    file.write_text(file.read_text().splitlines()[1] + "\n")
    load()
    assert taken(server.url("producer")) and not taken(before)


@pytest.mark.parametrize("line", ["", "two words", "p@ss"])
def test_a_password_that_does_not_fit_a_url_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "reader.password").write_text(f"{line}\n")
    done = subprocess.run(
        [DEPLOY / "make_users.sh", "redis://h:1/0"], env={**os.environ, "SECRETS": str(tmp_path)}, capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "reader.password" in done.stderr and not (tmp_path / "users.acl").exists()


def test_compose_gives_each_service_its_user(server: Server) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    users = {name: Path(service["env_file"]).stem for name, service in services.items() if "env_file" in service}
    assert users == {
        "worker": "worker", "worker-soc": "worker", "worker-pcie": "worker", "exporter": "reader",
        "gateway": "producer", "producer": "producer", "status": "reader",
    }
    assert all((server.secrets / f"{user}.env").is_file() for user in users.values())
    assert not any("SAILQ_REDIS_URL" in service.get("environment", {}) for service in services.values())
