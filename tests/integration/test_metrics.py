"""The metrics of a worker that has run real jobs, and of the exporter."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from asking import LONG_ANSWER
from commands import invoke, refused, sailq, told
from null_jobs import submit
from own_server import OwnServer
from scraping import exporter, free_port, scrape

from sailq.operators.fleet import Fleet
from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.producer.samples import write_samples
from sailq.shared.workers import live_workers

Eventually = Callable[..., None]


def ask(text: str, picture: Path | None = None) -> list[dict[str, object]]:
    shown = [] if picture is None else [{"type": "image", "image": str(picture)}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def worker(start_worker: Callable[..., ManagedProcess], metrics_port: int) -> ManagedProcess:
    return start_worker("--metrics-address", "127.0.0.1", "--metrics-port", str(metrics_port))


def test_every_metric_of_a_worker(
    worker: ManagedProcess, metrics_port: int, client: Client, tmp_path: Path, eventually: Eventually
) -> None:
    list(write_samples(7, 2, tmp_path))
    picture = next(tmp_path.rglob("*.png"))
    before = scrape(metrics_port)
    assert before.value("sailq:requests_finished_total", finish_reason="error", code="internal") == 0

    running = client.submit(ask("Hello"), options=LONG_ANSWER, stream=True)
    next(iter(client.stream(running.job, timeout=30)))
    during = scrape(metrics_port)
    assert during.value("sailq:num_requests_running") == 1 and during.value("sailq:num_requests_waiting") == 0
    client.cancel(running.job)

    handles = [running, client.submit(ask("Hello"), options=LONG_ANSWER, timeout=0.5)]
    for prompt in ("What is it?", "Which colour?"):  # one after the other, so that the second one hits the cache
        handles.append(client.submit(ask(prompt, picture)))
        client.wait(handles[-1].job, timeout=30)
    handles.append(client.submit(ask("What is it?", picture), options={"max_new_tokens": 2}))
    handles.append(client.submit(ask("word " * 20_000)))
    results = [client.wait(handle.job, timeout=30) for handle in handles]
    eventually(lambda: scrape(metrics_port).value("sailq:requests_finished_total") == len(results))
    after = scrape(metrics_port)
    value = after.value

    assert [result.finish_reason for result in results] == ["cancelled", "deadline", "stop", "stop", "length", "error"]
    for reason, count in {"cancelled": 1, "deadline": 1, "stop": 2, "length": 1, "error": 1}.items():
        assert value("sailq:requests_finished_total", finish_reason=reason) == count
    assert value("sailq:requests_finished_total", finish_reason="error", code="too_long") == 1
    assert value("sailq:request_attempts_total") == len(results)

    usage = [result.usage for result in results]
    assert value("sailq:prompt_tokens_total") == sum(one.prompt_tokens for one in usage) > 0
    assert value("sailq:vision_tokens_total") == sum(one.vision_tokens for one in usage) > 0
    assert value("sailq:generation_tokens_total") == sum(one.completion_tokens for one in usage) > 0
    assert value("sailq:vision_cache_queries_total") == 3 and value("sailq:vision_cache_hits_total") == 2

    spans = {
        "request_queue_time_seconds": [result.timings.queue_wait for result in results],
        "time_to_first_token_seconds": [result.timings.time_to_first_token for result in results],
        "e2e_request_latency_seconds": [result.timings.end_to_end for result in results],
    }
    for name, seconds in spans.items():
        taken = [one for one in seconds if one is not None]
        assert value(f"sailq:{name}_count") == value(f"sailq:{name}_bucket", le="+Inf") == len(taken) > 0
        assert value(f"sailq:{name}_sum") == pytest.approx(sum(taken))
    for stage in ("fetch", "preprocess", "vision_encode", "prefill", "decode"):
        taken = [one for result in results if (one := getattr(result.timings, stage)) is not None]
        assert value("sailq:request_stage_seconds_count", stage=stage) == len(taken) == 5
        assert value("sailq:request_stage_seconds_sum", stage=stage) == pytest.approx(sum(taken))

    decode = [result.timings.decode or 0.0 for result in results]
    gaps = sum(max(0, one.completion_tokens - 1) for one in usage)
    assert value("sailq:inter_token_latency_seconds_count") == gaps
    assert value("sailq:inter_token_latency_seconds_sum") == pytest.approx(sum(decode))
    busy = value("sailq:device_busy_seconds_total") - before.value("sailq:device_busy_seconds_total")
    assert 0.2 * sum(decode) < busy <= sum(decode) + sum(
        (result.timings.prefill or 0.0) + (result.timings.vision_encode or 0.0) for result in results
    )

    (record,) = live_workers(client.connection)
    assert value("sailq:num_requests_running") == 0 and value("sailq:slots") == record.slots == 8
    assert value("sailq:worker_info", worker=record.name, version=record.version) == 1
    of = {"model": record.model, "device": record.device}
    ours = [name for name in after.labels() if name.startswith("sailq:")]
    assert len(ours) > 20 and all(value(name, **of) == value(name) for name in ours)
    assert value("process_resident_memory_bytes") > 100e6
    assert not [name for name in after.labels() if name.startswith("sailq:tpu_")]


def test_the_server_has_the_tokens_per_second(
    start_null: Callable[..., object], client: Client, eventually: Eventually
) -> None:
    start_null("--decode-ms", "20")
    job = submit(client, 1000)
    eventually(lambda: [worker.tokens_per_second for worker in live_workers(client.connection)][0] > 5)
    client.cancel(job)
    done = invoke("status", url=_url(client.connection))
    assert "tokens/s" in done.stdout, done.stderr


def test_a_scrape_sends_no_command_to_the_server(
    start_null: Callable[..., object], connection: redis.Redis, metrics_port: int
) -> None:
    start_null(SAILQ_METRICS_PORT=str(metrics_port), SAILQ_METRICS_ADDRESS="127.0.0.1")

    def commands() -> int:
        return int(connection.info("stats")["total_commands_processed"])

    asked = commands()
    for _ in range(100):
        scrape(metrics_port)
    assert commands() - asked < 100  # its heartbeats, and the commands with which it waits for jobs


def test_a_port_in_use_is_reported_before_the_model_is_loaded(redis_url: str, metrics_port: int) -> None:
    with socket.create_server(("127.0.0.1", metrics_port)):
        options = ("--metrics-address", "127.0.0.1", "--metrics-port", metrics_port)
        done = invoke("worker", "--model", "sailq-tiny", *options, url=redis_url)
        refused(done, "bad_request", metrics_port, "127.0.0.1")
        done = invoke("exporter", "--address", "127.0.0.1", "--port", metrics_port, url=redis_url)
        refused(done, "bad_request", metrics_port)
    done = invoke("worker", "--metrics-address", "192.0.2.1", "--metrics-port", 9, url=redis_url)
    refused(done, "bad_request", 9, "192.0.2.1")


def test_a_worker_serves_no_metrics_by_default(start_null: Callable[..., object], connection: redis.Redis) -> None:
    worker = start_null()
    listening = [line.split() for line in Path(f"/proc/{worker.pid}/net/tcp").read_text().splitlines()[1:]]  # type: ignore[attr-defined]
    inodes = {line[9] for line in listening if line[3] == "0A"}
    sockets = {entry.readlink().name for entry in Path(f"/proc/{worker.pid}/fd").iterdir()}  # type: ignore[attr-defined]
    assert not [inode for inode in inodes if f"socket:[{inode}]" in sockets]


def test_every_metric_of_the_server(redis_url: str, client: Client, tmp_path: Path, eventually: Eventually) -> None:
    list(write_samples(7, 1, tmp_path))
    clip = next(tmp_path.rglob("*.mp4"))
    shown = [{"role": "user", "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": "?"}]}]
    for turn in range(3):
        client.submit(shown, model="nobodys", conversation="one" if turn else "other")
    with exporter(redis_url, tmp_path / "exporter.log") as look:
        eventually(lambda: look().value("sailq:queue_oldest_wait_seconds", model="nobodys") > 0)
        server = look()
    snapshot = Fleet(client.connection).snapshot()
    value = server.value
    assert value("sailq:server_up") == 1 and value("sailq:workers", model="nobodys") == 0
    assert value("sailq:queue_depth", model="nobodys") == 2 and value("sailq:queue_deferred", model="nobodys") == 1
    assert value("sailq:queue_started", model="nobodys") == value("sailq:failed_jobs", model="nobodys") == 0
    assert value("sailq:conversations") == 2 and value("sailq:server_memory_limit_bytes") == snapshot.memory_limit == 0
    assert value("sailq:clip_bytes") == snapshot.clip_bytes > 1000
    assert value("sailq:server_memory_used_bytes") == pytest.approx(snapshot.memory_used, rel=0.2)


def test_workers_and_failures_are_counted_by_their_model(
    start_null: Callable[..., object], client: Client, redis_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    start_null()
    start_null()
    client.connection.zadd("rq:failed:sailq3-sailq-tiny", {"a": 4e9, "b": 4e9})
    with exporter(redis_url, tmp_path / "exporter.log") as look:
        server = look()
    assert server.value("sailq:workers", model="sailq-tiny") == 2
    assert server.value("sailq:failed_jobs", model="sailq-tiny") == 2


def test_a_producer_that_names_many_models_cannot_flood_prometheus(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    client.connection.sadd("rq:queues", *(f"rq:queue:sailq3-model-{index}" for index in range(1000)))
    client.connection.rpush("rq:queue:sailq3-model-999", "a")
    with exporter(redis_url, tmp_path / "exporter.log") as look:
        server = look()
    assert server.value("sailq:queue_depth", model="model-999") == 1
    assert sum(sample.name == "sailq:queue_depth" for family in server.families for sample in family.samples) == 64


def test_the_exporter_reports_an_unreachable_server(folder: Path, eventually: Eventually) -> None:
    with OwnServer(folder) as server:
        server.start()
        with exporter(server.url, folder / "exporter.log") as look:
            assert look().value("sailq:server_up") == 1
            server.kill()
            gone = look()
            assert gone.value("sailq:server_up") == 0 and "sailq:queue_depth" not in gone.labels()
            server.start()
            eventually(lambda: look().value("sailq:server_up") == 1)


def test_a_light_client_is_told_what_metrics_need(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "pip install 'sailq[metrics]'" in told(sailq("exporter", url=redis_url), 2)
    assert sailq("status", url=redis_url).returncode == 0


def _url(connection: redis.Redis) -> str:
    options = connection.connection_pool.connection_kwargs
    return f"unix://{options['path']}?db={options['db']}"


