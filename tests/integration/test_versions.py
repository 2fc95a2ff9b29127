"""Two versions of a model on one server: each under its own name, and both under an alias."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from commands import sailq, told
from farm import NullWorker
from null_jobs import claimed_at, server_time

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.workers import live_workers
from sailq.worker.model_files.model_paths import fingerprint, resolve

ALIAS, OLD, NEW = "tiny", "tiny-2026-10", "tiny-2026-11"
Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two versions of sailq-tiny."""
    folder = tmp_path_factory.mktemp("models")
    for name in (OLD, NEW):
        shutil.copytree(resolve("sailq-tiny"), folder / name)
    (folder / NEW / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture
def serve(start_null: Start, models: Path) -> Start:
    """Starts a null worker with a version of the model."""

    def start(name: str, *arguments: str, **options: bool) -> NullWorker:
        return start_null(*arguments, SAILQ_MODEL=str(models / name), SAILQ_ALIAS=ALIAS, **options)

    return start


def submit(client: Client, model: str, tokens: int = 5) -> str:
    return client.submit([{"role": "user", "content": "Hi"}], model=model, options={"max_new_tokens": tokens}).job


def unfinished(connection: redis.Redis, model: str) -> list[bytes]:
    """Jobs that wait, or that run."""
    queue = keys.queue(model)
    return [*connection.lrange(keys.waiting(queue), 0, -1), *connection.zrange(f"rq:wip:{queue}", 0, -1)]


def test_an_alias_is_answered_by_both_versions_and_a_name_by_its_own(
    serve: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    for name in (OLD, NEW):
        serve(name, "--slots", "2", "--decode-ms", "20")
    jobs = {job: model for model in (ALIAS, OLD, NEW) for job in [submit(client, model) for _ in range(20)]}
    by: dict[str, set[str]] = {ALIAS: set(), OLD: set(), NEW: set()}
    for job, result in client.as_completed(list(jobs), 60):
        assert result.error is None
        by[jobs[job]].add(result.model)
    assert by == {ALIAS: {OLD, NEW}, OLD: {OLD}, NEW: {NEW}}
    eventually(lambda: not any(unfinished(connection, name) for name in (ALIAS, OLD, NEW)))


def test_a_version_is_rolled_out_under_load_and_no_job_is_lost(
    serve: Start, client: Client, connection: redis.Redis, eventually: Eventually
) -> None:
    old = serve(OLD, "--decode-ms", "20")
    jobs = [submit(client, ALIAS, 20) for _ in range(60)]
    eventually(lambda: len(connection.keys(keys.result("*"))) >= 10)
    serve(NEW, "--decode-ms", "20")
    old.signal(signal.SIGTERM)
    results = dict(client.as_completed(jobs, 60))
    assert all(result.error is None and result.attempt == 1 for result in results.values())
    assert {result.model for result in results.values()} == {OLD, NEW}
    old.wait_for_end()
    assert client.wait(submit(client, ALIAS), 60).model == NEW


@pytest.mark.parametrize("asked", [OLD, ALIAS])
@pytest.mark.proof
def test_the_jobs_of_a_killed_worker_are_run_once_more_and_by_their_version(
    serve: Start, client: Client, connection: redis.Redis, eventually: Eventually, asked: str
) -> None:
    killed = serve(OLD, "--decode-ms", "50")
    jobs = [submit(client, asked, 200) for _ in range(2)]
    eventually(lambda: all(connection.hget(keys.job(job), "status") == b"started" for job in jobs))
    assert len(unfinished(connection, asked)) == len(jobs)  # only through their leases
    killed.kill()
    died = server_time(connection)
    for name in (NEW, OLD):
        serve(name, "--decode-ms", "20")
    results = [client.wait(job, 60) for job in jobs]
    assert {result.model for result in results} <= ({OLD} if asked == OLD else {OLD, NEW})
    assert [result.attempt for result in results] == [2] * len(jobs)
    assert max(map(claimed_at, results)) - died < 10
    eventually(lambda: not unfinished(connection, asked))


def test_status_distinguishes_versions(
    serve: Start, client: Client, redis_url: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # else names are folded
    for name in (OLD, NEW):
        serve(name)
    workers = {worker.model: worker for worker in live_workers(client.connection, ALIAS)}
    assert {name: worker.model_version for name, worker in workers.items()} == {
        name: fingerprint(models / name) for name in (OLD, NEW)
    }
    assert workers[OLD].model_version != workers[NEW].model_version
    shown = sailq("status", "--redis-url", redis_url).stdout
    assert all(word in shown for word in (OLD, NEW, ALIAS, workers[OLD].model_version))


def test_a_version_that_nobody_serves_is_refused(serve: Start, client: Client, redis_url: str) -> None:
    serve(NEW)
    refused = sailq("ask", "--redis-url", redis_url, "--model", OLD, "--prompt", "Hi")
    assert "tiny, tiny-2026-11" in told(refused, 2)


def test_a_worker_of_an_older_protocol_takes_no_job_of_a_newer_one_and_says_why(
    start_null: Start, client: Client, connection: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    connection.rpush("rq:queue:sailq-sailq-tiny", "a-job-of-an-older-producer")
    start_null()
    assert client.wait(submit(client, "sailq-tiny"), 60).error is None
    assert connection.lrange("rq:queue:sailq-sailq-tiny", 0, -1) == [b"a-job-of-an-older-producer"]
    assert int(connection.get(keys.NEWEST)) == keys.PROTOCOL
    connection.set(keys.NEWEST, keys.PROTOCOL + 1)
    old = start_null(ready=False)
    old.wait_for_end(60)
    assert str(keys.PROTOCOL + 1) in old.log.read_text()


def test_a_fingerprint_changes_with_the_files(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(models / NEW, copy)
    assert fingerprint(copy) == fingerprint(models / NEW)
    weights = copy / "onnx" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != fingerprint(models / NEW)
