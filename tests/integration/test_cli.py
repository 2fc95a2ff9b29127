"""The command line as a person or a script uses it. The server is real; where signals, pipes, terminals or processes
are at stake, the command is a process too."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from commands import SECONDS, invoke, living, refused, rows, sockets, start

from sailq.producer.client import Client
from sailq.producer.managed_process import sailq_command
from sailq.producer.samples import write_samples
from sailq.shared import keys

SCRIPT = Path(sys.executable).with_name("sailq")
COMMANDS = ("ask", "bench", "caption", "chat", "demo", "server", "status", "worker")


def at_a_terminal(*arguments: object, url: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """With stderr on a terminal and stdout in a pipe; also gives what the terminal got."""
    terminal, stderr = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # EIO: the terminal is closed
            while piece := os.read(terminal, 1 << 16):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            sailq_command(*map(str, arguments)), env={**os.environ, "SAILQ_REDIS_URL": url, "TERM": "xterm"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=SECONDS,
        )
    finally:
        os.close(stderr)
        reader.join()
        os.close(terminal)
    return done, b"".join(shown).decode()


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Five samples, one of each task, and their truth.jsonl."""
    list(write_samples(7, 5, tmp_path / "samples"))
    return tmp_path / "samples"


# Help and usage errors, without a server.

@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    done = invoke(command, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout and f"sailq {command}" in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [
    (["--help"], 0),
    (["ask", "--prompt", "x", "--redis-url", "unix:///no/such.sock"], 1),
    (["ask"], 2),
    (["ask", "--no-such-option"], 2),
])
def test_the_script_and_its_exit_codes(arguments: list[str], code: int) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert bool(done.stdout) is (code == 0) and bool(done.stderr) is (code != 0)
    assert ("ask" in done.stdout and "worker" in done.stdout) is (code == 0)


def test_a_closed_pipe_ends_the_command_without_a_message() -> None:
    nobody, pipe = os.pipe()
    os.close(nobody)
    try:
        done = subprocess.run([SCRIPT, "model", "list"], stdout=pipe, stderr=subprocess.PIPE, timeout=SECONDS)
    finally:
        os.close(pipe)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("arguments", "names"), [
    (["ask"], ["--prompt", "--video", "--image"]),
    (["ask", "--prompt", "x", "--redis-url", "http://x"], ["redis://", "rediss://", "unix://"]),
    (["ask", "--prompt", "x", "--vision-inputs", '[{"type": '], ["vision_inputs", "column 11"]),
    (["ask", "--prompt", "x", "--temperature", "-1"], ["temperature"]),
    (["ask", "--video", "x.mp4", "--resized-height", "140"], ["--resized-height", "--resized-width"]),
    (["chat", "--top-p", "0"], ["top_p"]),
    (["chat", "--fps", "-1"], ["fps"]),
    (["bench", "--seed", "-1"], ["seed"]),
    (["bench", "--slots", "0"], ["slots"]),
    (["caption", "x.mp4", "--resize-type", "Origin", "--max-frames", "1"], ["--max-frames"]),
    (["worker", "--drain-seconds", "-1"], ["drain_seconds"]),
    (["worker", "--metrics-port", "70000"], ["--metrics-port", "70000"]),
    (["caption"], ["--messages"]),
    (["caption", "x.mp4", "--out", "x.jsonl", "--report", "./x.jsonl"], ["--out", "--report"]),
    (["caption", "/no/such/*.mp4"], ["/no/such/*.mp4"]),
    (["caption", "--messages", "/no/such.jsonl"], ["/no/such.jsonl", os.strerror(errno.ENOENT)]),
    (["caption", "--messages", "x.jsonl", "--prompt", "x"], ["--messages", "--prompt"]),
    (["server", "--port", "7000", "--unix", "/tmp/x"], ["--port", "--unix"]),
])
def test_usage_errors_are_one_sentence_and_exit_2(arguments: list[str], names: list[str]) -> None:
    refused(invoke(*arguments), "bad_request", *names)


def test_an_unknown_device_is_refused() -> None:
    refused(invoke("worker", "--device", "gpu"), "unsupported", "'gpu'", "cpu", "tpu:N", "emulator")


def test_an_invalid_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAILQ_RESULT_TTL", "soon")
    refused(invoke("ask", "--prompt", "x"), "bad_request", "SAILQ_RESULT_TTL", "'soon'")


def test_an_unreachable_server_is_reported() -> None:
    url = "unix:///no/such.sock"
    refused(invoke("status", url=url), "server_unavailable", "/no/such.sock", "SAILQ_REDIS_URL")
    done = invoke("ask", "--prompt", "x", "--json", url=url)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["error"]["code"] == "server_unavailable"


def test_a_worker_refuses_an_unknown_model(redis_url: str) -> None:
    refused(invoke("worker", "--model", "/no/such/model", url=redis_url), "unsupported", "/no/such/model", "sailq-tiny")


# Without a worker.

def test_unreadable_media_fail_at_once(redis_url: str, connection: redis.Redis) -> None:
    done = invoke("ask", "--video", "/no/such.mp4", url=redis_url)
    assert done.returncode == 1 and done.error and done.error.code == "bad_media"
    assert done.stderr.splitlines()[-1].startswith("sailq: /no/such.mp4: ")
    done = invoke("ask", "--video", "/no/such.mp4", "--json", url=redis_url)
    assert json.loads(done.stdout)["error"]["code"] == "bad_media"
    assert not list(connection.scan_iter(keys.job("*")))


def test_bad_clips_are_rows_in_order_and_exit_1(redis_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.mp4").write_text("not a video")
    (folder.parent / "a.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not a clip")
    out = tmp_path / "out.jsonl"
    done = invoke("caption", folder.parent, tmp_path / "gone.mp4", "--out", out, "--json", url=redis_url)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"] == 3
    again = invoke("caption", folder.parent, tmp_path / "gone.mp4", "--out", out, url=redis_url)
    assert [line for line in again.stderr.splitlines() if line.startswith(f"{tmp_path / 'gone.mp4'}: ")]
    written = rows(out)
    assert [row["index"] for row in written] == [0, 1, 2]
    assert [Path(row["source"]).name for row in written] == ["a.png", "b.mp4", "gone.mp4"]
    assert {row["error"]["code"] for row in written} == {"bad_media"}


def test_the_first_failures_are_listed_and_the_rest_counted(redis_url: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"messages": ["x"]}\n' * 7)
    done = invoke("caption", "--messages", source, url=redis_url)
    lines = done.stderr.splitlines()
    named = [line.split(": ")[0] for line in lines if line.startswith("rows.jsonl:")]
    assert named == [f"rows.jsonl:{number}" for number in range(1, 6)]
    assert [line for line in lines if "2 more" in line]


@pytest.mark.parametrize("line", ["{broken", '{"prompt": "x"}', "[]", '{"messages": []}'])
def test_an_invalid_line_is_named_and_nothing_is_submitted(
    line: str, redis_url: str, connection: redis.Redis, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + f"\n{line}\n")
    refused(invoke("caption", "--messages", source, url=redis_url), "bad_request", "Line 2 ", source)
    assert not list(connection.scan_iter("*"))


def test_a_file_with_other_content_is_never_overwritten(redis_url: str, tmp_path: Path) -> None:
    for content in ("my notes", "my notes\n", '{"index": 1}\n', '{"a": 1}'):
        (tmp_path / "out.jsonl").write_text(content)
        done = invoke("caption", tmp_path / "gone.mp4", "--out", tmp_path / "out.jsonl", url=redis_url)
        assert done.returncode == 2 and "--out" in done.stderr.splitlines()[-1]
        assert (tmp_path / "out.jsonl").read_text() == content


def test_rows_that_cannot_be_written(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\n")
    for out, words in ((tmp_path, os.strerror(errno.EISDIR)), (tmp_path / "binary.jsonl", "--out")):
        done = invoke("caption", tmp_path / "gone.mp4", "--out", out, url=redis_url)
        assert done.returncode == 2 and done.error and done.error.code == "bad_request"
        assert words in str(done.error) and str(out) in str(done.error)


def test_an_unwritable_report_is_reported_before_the_work(
    redis_url: str, connection: redis.Redis, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}))
    done = invoke("caption", "--messages", source, "--report", tmp_path, url=redis_url)
    assert done.returncode == 2 and done.error and done.error.code == "bad_request" and str(tmp_path) in str(done.error)
    assert not list(connection.scan_iter("*"))


def test_status_shows_waiting_jobs(redis_url: str) -> None:
    with Client(redis_url) as client:
        handle = client.submit([{"role": "user", "content": "x"}], model="some-model")
        client.submit([{"role": "user", "content": "x"}], model="some-model", conversation=handle.conversation)
    said = json.loads(invoke("status", "--json", "--memory", url=redis_url).stdout)
    (queue,) = said["queues"]
    assert queue["model"] == "some-model"
    assert (queue["waiting"], queue["deferred"], queue["started"], queue["failed"]) == (1, 1, 0, 0)
    assert 0 <= queue["oldest_wait"] < 60
    assert (said["workers"], said["conversations"]) == ([], 1)
    assert said["memory_used"] > 0
    assert "rq:job" in {kind["kind"] for kind in said["memory_by_kind"]}
    page = invoke("status", url=redis_url)
    assert page.returncode == 0 and "some-model" in page.stdout


# The embedded server.

def test_server_runs_until_sigterm_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    process = start("server", "--unix", path, "--data", tmp_path / "data")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"export SAILQ_REDIS_URL=unix://{path}\n"
        with redis.Redis(unix_socket_path=str(path)) as connection:
            pid = connection.info("server")["process_id"]
            assert connection.config_get("port")["port"] == "0"
            connection.set("kept", "yes")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not path.exists()
    assert (tmp_path / "data").is_dir()


def test_a_server_that_stops_during_a_batch_loses_no_row(tmp_path: Path, eventually: Callable[..., None]) -> None:
    url, out, source = f"unix://{tmp_path}/s.sock", tmp_path / "out.jsonl", tmp_path / "rows.jsonl"
    contents = [[{"type": "image", "image": "gone.png"}], "x"]
    source.write_text("".join(json.dumps({"messages": [{"role": "user", "content": one}]}) + "\n" for one in contents))
    server = start("server", "--unix", tmp_path / "s.sock")
    batch = None
    try:
        assert server.stdout is not None and server.stdout.readline()
        batch = start("caption", "--messages", source, "--out", out, url=url)
        eventually(lambda: out.exists() and len(rows(out)) == 1, 20)
        server.send_signal(signal.SIGTERM)
        _, errors = batch.communicate(timeout=60)
    finally:
        server.terminate()  # the embedded server stops with it
        server.wait(20)
        if batch is not None:
            batch.kill()
    assert batch.returncode == 1 and "Traceback" not in errors
    *_, kept, last = errors.splitlines()
    assert "1 of 2" in kept and str(out) in kept
    assert last.startswith("sailq: ") and f"{tmp_path}/s.sock" in last
    assert len(rows(out)) == 1


def test_server_on_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(invoke("server", "--port", port), "bad_request", port)


# With a worker.

def test_ask_answers_the_same_streamed_or_not(served_url: str, samples: Path) -> None:
    question = ["ask", "--video", samples / "clips" / "0000.mp4", "--nframes", 4, "--max-new-tokens", 24]
    plain = invoke(*question, url=served_url)
    assert plain.returncode == 0, plain.stderr
    assert "tokens/s" in plain.stderr
    assert invoke(*question, "--stream", url=served_url).stdout == plain.stdout
    said = json.loads(invoke(*question, "--json", url=served_url).stdout)
    assert said["text"] + "\n" == plain.stdout
    assert said["error"] is None and said["finish_reason"] in {"stop", "length"}
    assert said["metrics"]["usage"]["vision_tokens"] > 0
    assert said["metrics"]["timings"]["time_to_first_token"] > 0
    *chunks, last = map(json.loads, invoke(*question, "--json", "--stream", url=served_url).stdout.splitlines())
    assert "".join(chunk["chunk"] for chunk in chunks) == last["text"] == said["text"]


def test_ask_continues_a_conversation(served_url: str, samples: Path) -> None:
    for prompt, media in (("What is it?", ["--image", samples / "images" / "0001_0.png"]), ("And its colour?", [])):
        done = invoke("ask", *media, "--prompt", prompt, "--conversation", "cli-talk", "--max-new-tokens", 8, "--json",
                     url=served_url)
        assert json.loads(done.stdout)["conversation"] == "cli-talk"
    with Client(served_url) as client:
        assert [turn.messages[-1].content[-1].text for turn in client.history("cli-talk")] == [
            "What is it?", "And its colour?"]


def test_ask_for_a_model_that_nobody_serves(served_url: str) -> None:
    refused(invoke("ask", "--prompt", "x", "--model", "other", url=served_url), "unsupported", "'other'", "sailq-tiny")


def test_ask_prints_the_workers_refusal(served_url: str) -> None:
    question = ["ask", "--prompt", "word " * 20_000]
    done = invoke(*question, "--json", url=served_url)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "too_long"
    done = invoke(*question, url=served_url)
    assert done.stdout == "" and done.returncode == 1 and done.stderr.startswith("sailq: ")


def test_chat_remembers_and_clears(served_url: str, samples: Path) -> None:
    image = samples / "images" / "0001_0.png"
    with Client(served_url) as client:
        known = set(client.conversations())
        lines = f"/image '{image}'\nWhat is it?\nWhat colour?\n/image /no/such.png\n"
        done = invoke("chat", "--max-new-tokens", 8, stdin=f"{lines}q\nnever asked\n", url=served_url)
        (talk,) = set(client.conversations()) - known
        turns = client.history(talk)
        assert [turn.messages[-1].content[-1].text for turn in turns] == ["What is it?", "What colour?"]
        assert [len(turn.messages[-1].content) for turn in turns] == [2, 1]
        assert done.stdout == "".join(f"{turn.text}\n" for turn in turns)
        assert done.returncode == 1 and "'/no/such.png'" in done.stderr
        (shown,) = client.connection.smembers(keys.conversation_clips(talk))
        assert client.connection.exists(keys.clip(shown.decode())), "a later question may need it"

        known |= {talk}
        done = invoke("chat", "--max-new-tokens", 8, stdin="Hello\n/clear\nHello\n", url=served_url)
        (talk,) = set(client.conversations()) - known
        (turn,) = client.history(talk)
        assert done.returncode == 0 and turn.turn == 1


def test_caption_keeps_order_metadata_and_finished_rows(served_url: str, samples: Path, tmp_path: Path) -> None:
    truth = rows(samples / "truth.jsonl")
    missing = {"messages": [{"role": "user", "content": [{"type": "video", "video": "later.mp4"}]}], "camera": 3}
    source, out, report = samples / "batch.jsonl", tmp_path / "out.jsonl", tmp_path / "report.html"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*truth[:2], missing, *truth[2:]]))
    command = ["caption", "--messages", source, "--out", out, "--report", report, "--window", 2]

    first = invoke(*command, url=served_url)
    written = rows(out)
    assert first.returncode == 1, first.stderr
    assert [row["index"] for row in written] == list(range(6))
    assert [row["error"] is None for row in written] == [True, True, False, True, True, True]
    assert written[0]["metadata"] == {key: truth[0][key] for key in ("task", "lang", "answer")}
    assert [row["text"] for row in written if "answer" in row["metadata"]] == [row["answer"] for row in truth]
    assert written[2]["metadata"] == {"camera": 3} and written[2]["error"]["code"] == "bad_media"
    assert "time to first token" in first.stderr and "captions/s" in first.stderr

    (samples / "later.mp4").write_bytes((samples / "clips" / "0000.mp4").read_bytes())
    with out.open("a") as file:
        file.write('{"index": 9, "sou')  # as if the run had been killed here
    second = invoke(*command, url=served_url)
    again = rows(out)
    assert second.returncode == 0, second.stderr
    assert "5 of 6" in second.stderr
    assert [row["job"] for row in again[:2] + again[3:]] == [row["job"] for row in written[:2] + written[3:]]
    assert again[2]["error"] is None and [row["index"] for row in again] == list(range(6))
    page = report.read_text()
    assert page.count("<article") == 6 and page.count('src="data:image/jpeg') >= 4

    other = invoke(*command, "--temperature", "0.5", url=served_url)
    assert other.returncode == 2 and other.error and other.error.code == "bad_request"
    assert rows(out) == again


def test_caption_writes_rows_to_stdout(served_url: str, samples: Path) -> None:
    done = invoke("caption", samples / "images", samples / "clips" / "*.mp4", "--max-new-tokens", 4, url=served_url)
    assert done.returncode == 0, done.stderr
    said = sorted(map(json.loads, done.stdout.splitlines()), key=lambda row: row["index"])
    files = [*sorted((samples / "images").iterdir()), *sorted((samples / "clips").iterdir())]
    assert [row["source"] for row in said] == [str(file) for file in files]


def test_rows_reach_the_file_while_a_terminal_shows_the_progress(served_url: str, samples: Path) -> None:
    done, screen = at_a_terminal("caption", samples / "images", "--max-new-tokens", 4, url=served_url)
    assert done.returncode == 0, screen
    assert len(done.stdout.splitlines()) == len(list((samples / "images").iterdir()))
    assert all(json.loads(line)["error"] is None for line in done.stdout.splitlines())
    assert "captions" in screen and "conversation" not in screen


def test_chat_reads_paths_as_a_shell_would(served_url: str, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(samples))
    done = invoke("chat", stdin="/image ~/images/0001_0.png\n/image ''\n", url=served_url)
    (line,) = done.stderr.splitlines()
    assert line.startswith("sailq: /image ") and done.returncode == 1


def test_status_shows_the_worker(served_url: str) -> None:
    (worker,) = json.loads(invoke("status", "--json", url=served_url).stdout)["workers"]
    assert worker["model"] == "sailq-tiny" and worker["slots"] > 0 and worker["beat_age"] < 30
    assert "sailq-tiny" in invoke("status", url=served_url).stdout


# The demo.

def test_demo_runs_on_its_own_and_leaves_nothing_running(tmp_path: Path) -> None:
    done = invoke("demo", "--count", 5, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    captions = rows(tmp_path / "demo" / "captions.jsonl")
    assert [row["metadata"]["task"] for row in captions] == ["video", "image", "images", "follow_up", "text"]
    assert all(row["metadata"]["answer"] == row["text"] for row in captions)
    assert "5 of 5" in done.stdout
    assert f"\n  {captions[0]['text']}\n" in done.stdout.partition("openai.OpenAI(base_url='http://127.0.0.1:")[2]
    assert "Finished server process" in (tmp_path / "demo" / "gateway.log").read_text()
    assert (tmp_path / "demo" / "report.html").stat().st_size > 5000
    assert not living(sockets(done.stderr)) and not Path(sockets(done.stderr)).exists()


def test_demo_uses_the_users_server(
    redis_url: str, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # it is not installed
    done = invoke("demo", "--count", 2, "--out", tmp_path / "demo", url=redis_url)
    assert done.returncode == 0, done.stderr
    assert "server at" not in done.stderr and "pip install 'sailq[demo]'" in done.stderr
    assert len(list(connection.scan_iter("sailq:result:*"))) == 2
    assert not connection.zcard(keys.WORKERS)


def test_demo_with_a_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    done = invoke("demo", "--count", 1, "--out", tmp_path / "demo", "--model", tmp_path / "broken")
    assert done.returncode == 2 and done.error and done.error.code == "bad_request"
    assert str(tmp_path / "demo" / "worker.log") in str(done.error)
    assert not living(sockets(done.stderr))
