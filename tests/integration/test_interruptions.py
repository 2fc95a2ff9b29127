"""Ctrl-C, SIGTERM and the end of the terminal: a command ends at once, with its exit code, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from commands import invoke, living, start

from sailq.producer.client import Client
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.jobs import GenerationOptions, Job, media_parts
from sailq.shared.rqjob import read_job


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Five samples, one of each task, and their truth.jsonl."""
    list(write_samples(7, 5, tmp_path / "samples"))
    return tmp_path / "samples"


def test_ctrl_c_during_an_import_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension module raises ImportError instead of KeyboardInterrupt."""

    def load(_: str) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("sailq.shared.main._interrupts", [])
    monkeypatch.setattr("sailq.shared.main.application", load)
    done = invoke("ask")
    assert done.returncode == 130 and done.stderr == "\nsailq: interrupted\n"


def waits_for_an_answer(connection: redis.Redis) -> bool:
    """Whether a client does; this run's other workers wait for jobs meanwhile."""
    return any(seen["cmd"] == "xread" and "b" in seen["flags"] for seen in connection.client_list())


@pytest.mark.parametrize(
    ("arguments", "stop"),
    [
        (["ask", "--prompt", "x"], signal.SIGINT),
        (["caption", "--messages", "ROWS", "--out", "OUT"], signal.SIGINT),
        (["caption", "--messages", "ROWS", "--out", "OUT"], signal.SIGHUP),
    ],
)
def test_ctrl_c_and_a_closed_terminal_cancel_waiting_jobs(
    arguments: list[str],
    stop: signal.Signals,
    redis_url: str,
    connection: redis.Redis,
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n")
    names = {"ROWS": source, "OUT": out}
    process = start(*(names.get(word, word) for word in arguments), url=redis_url)
    try:
        eventually(lambda: connection.llen(f"rq:queue:{keys.queue('sailq-tiny')}") == 1)
        eventually(lambda: waits_for_an_answer(connection))
        process.send_signal(stop)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "sailq-tiny" in errors and errors.splitlines()[-1].startswith("sailq: ") and "Traceback" not in errors
    assert not list(connection.scan_iter(keys.job("*")))
    with Client(redis_url) as client:
        (result,) = connection.scan_iter("sailq:result:*")
        cancelled = client.result(result.decode().removeprefix("sailq:result:"))
    assert cancelled is not None and cancelled.finish_reason == "cancelled"


def test_ctrl_c_in_a_chat_stops_the_answer_and_keeps_what_was_shown(
    redis_url: str, connection: redis.Redis, samples: Path, eventually: Callable[..., None]
) -> None:
    options = ("--seed", 7, "--stop", "a", "--stop", "b", "--resized-height", 112, "--resized-width", 140)
    image = samples / "images" / "0001_0.png"
    process = start("chat", "--image", image, *options, url=redis_url, stdin=subprocess.PIPE)

    def ask_and_stop(line: str) -> Job:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        eventually(lambda: list(connection.scan_iter(keys.job("*"))), 20)
        eventually(lambda: waits_for_an_answer(connection), 20)
        (key,) = connection.scan_iter(keys.job("*"))
        job = read_job(key.decode().removeprefix(keys.job("")), keys.queue("sailq-tiny"), connection.hgetall(key))
        process.send_signal(signal.SIGINT)
        eventually(lambda: not list(connection.scan_iter(keys.job("*"))), 20)
        return job

    try:
        first, again = map(ask_and_stop, ("What is it?", "What colour?"))
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1 and len([line for line in errors.splitlines() if line.startswith("sailq: ")]) == 2
    assert (again.conversation, again.turn) == (first.conversation, 1)
    assert [part.type for part in again.messages[0].content] == ["image", "text"]
    assert again.options == GenerationOptions(seed=7, stop=("a", "b"))
    assert [part.size for part in media_parts(again.messages)] == [(1, 112, 140)]


def test_demo_stops_what_it_started_on_ctrl_c(tmp_path: Path, eventually: Callable[..., None]) -> None:
    process = start("demo", "--count", 1, "--out", tmp_path / "demo")
    try:
        log = tmp_path / "demo" / "server.log"
        eventually(lambda: log.exists() and "unix://" in log.read_text(), 30)
        folder = log.read_text().split("unix://")[1].split("/redis.sock")[0]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    assert not living(folder) and not Path(folder).exists()


def test_demo_shows_its_captions_on_a_page_until_ctrl_c(tmp_path: Path, eventually: Callable[..., None]) -> None:
    out = tmp_path / "demo"
    process = start("demo", "--count", 5, "--page", "--out", out)
    try:
        eventually((out / "report.html").exists, 90)
        found = re.search(r"the page is at (\S+)", (out / "page.log").read_text())
        assert found
        eventually(lambda: httpx.get(found[1]).text.count('<li class="card"') >= 5)
        folder = (out / "server.log").read_text().split("unix://")[1].split("/redis.sock")[0]
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode in {0, 130} and "Traceback" not in errors
    assert not living(folder) and not living(str(out / "demo-page.db"))
