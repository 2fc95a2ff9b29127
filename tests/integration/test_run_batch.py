"""`sailq run-batch` with lines of the kinds in vLLM's documents of multimodal inputs and of batch files."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, refused, rows, start
from farm import NullWorker

from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.connection import connect

MODEL = "sailq-tiny"
LINES, KILLS = 300, 5
SECONDS = 600.0
"""Within this a run makes progress, however busy the machine is."""


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"model": MODEL, **body}}


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(their folder, a row about one image, a row about one video), with true answers."""
    folder = tmp_path_factory.mktemp("samples")
    found = list(write_samples(7, 40, folder))

    def first(kind: str) -> dict[str, Any]:
        return next(row for row in found if [part["type"] for part in row["messages"][0]["content"]] == [kind, "text"])

    return folder, first("image"), first("video")


def test_requests_of_the_kinds_in_vllms_documents(
    samples: tuple[Path, dict[str, Any], dict[str, Any]], served_url: str, tmp_path: Path
) -> None:
    folder, image, video = samples
    (picture, about), (clip, asks) = (row["messages"][0]["content"] for row in (image, video))
    photo, movie = folder / picture["image"], folder / clip["video"]
    encoded = base64.b64encode(photo.read_bytes()).decode()
    data, film = f"data:image/png;base64,{encoded}", base64.b64encode(movie.read_bytes()).decode()
    hello, short = [{"role": "user", "content": "Hello world!"}], {"max_completion_tokens": 4}
    seen = {"type": "image_url", "image_url": {"url": data}}
    right = {"image": image["answer"], "video": video["answer"]}
    cases: list[tuple[dict[str, Any], int | str, str | None]] = [
        (line("text", messages=hello, max_completion_tokens=4), 200, None),
        (line("system", messages=[{"role": "system", "content": "You are a helpful assistant."}, *hello], **short), 200,
         None),
        (line("history", messages=[*hello, {"role": "assistant", "content": "Hi."}, *hello], **short), 200, None),
        (line("text parts", messages=user(text("Hello"), text("world!")), **short), 200, None),
        (line("data URL", messages=user(seen, about)), 200, "image"),
        (line("detail", messages=user({"type": "image_url", "image_url": {"url": data, "detail": "low"}}, about)), 200,
         "image"),
        (line("file URL", messages=user({"type": "image_url", "image_url": {"url": photo.as_uri()}}, about)), 200,
         "image"),
        (line("path", messages=user({"type": "image_url", "image_url": {"url": str(photo)}}, about)), 200, "image"),
        (line("relative path", messages=user({"type": "image_url", "image_url": picture["image"]}, about)), 200,
         "image"),
        (line("text first", messages=user(about, seen)), 200, None),
        (line("two images", messages=user(seen, seen, text("What is the same in both?")), **short), 200, None),
        (line("uuid", messages=user({**seen, "uuid": "image-1"}, about)), 200, "image"),
        (line("input_image", messages=user({"type": "input_image", "image_url": data}, about)), 200, "image"),
        (line("video file", messages=user({"type": "video_url", "video_url": {"url": movie.as_uri()}}, asks)), 200,
         "video"),
        (line("video data URL", messages=user(
            {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{film}"}}, asks)), 200, "video"),
        (line("num_frames", messages=user({"type": "video_url", "video_url": {"url": str(movie)}}, asks),
              media_io_kwargs={"video": {"num_frames": 4}}), 200, None),
        (line("processor", messages=user(seen, about), mm_processor_kwargs={"max_pixels": 200_704}), 200, None),
        (line("sampling", messages=hello, temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.05, seed=1,
              stop=["\n"], **short), 200, None),
        (line("neutral", messages=hello, n=1, logprobs=False, tools=[], user="u", min_p=0.0, **short), 200, None),
        (line("http", messages=user({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, about)),
         400, "unsupported_value"),
        (line("audio", messages=user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})), 400,
         "unsupported_value"),
        (line("embeds", messages=user({"type": "image_embeds", "image_embeds": "x"}, about)), 400, "unsupported_value"),
        (line("missing file", messages=user({"type": "image_url", "image_url": "none.png"}, about)), 422,
         "invalid_media"),
        (line("bad data", messages=user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})),
         422, "invalid_media"),
        (line("tools", messages=hello, tools=[{"type": "function", "function": {"name": "f"}}]), 400,
         "unsupported_parameter"),
        (line("logprobs", messages=hello, logprobs=True), 400, "unsupported_parameter"),
        (line("several", messages=hello, n=4), 400, "unsupported_parameter"),
        (line("stream", messages=hello, stream=True), 400, "unsupported_parameter"),
        (line("unknown field", messages=hello, colour="red"), 400, "unknown_parameter"),
        (line("no messages"), 400, "missing_required_parameter"),
        (line("too long", messages=user("word " * 20_000)), 400, "context_length_exceeded"),
        (line("other model", model="qwen", messages=hello), 404, "model_not_found"),
    ]
    out = tmp_path / "out.jsonl"
    given = write(folder / "in.jsonl", [case for case, _, _ in cases])
    done = invoke("run-batch", "-i", given, "-o", out, "--json", url=served_url)
    found = rows(out)
    assert [row["custom_id"] for row in found] == [case["custom_id"] for case, _, _ in cases]
    for row, (case, status, expected) in zip(found, cases, strict=True):
        response = row["response"]
        assert response["status_code"] == status, row
        assert row["id"].startswith("batch_req_") and response["request_id"].startswith("req_") and row["error"] is None
        if status != 200:
            assert response["body"]["error"]["code"] == expected and response["body"]["error"]["message"], row
            continue
        body = response["body"]
        assert (body["object"], body["model"]) == ("chat.completion", MODEL)
        assert body["usage"]["completion_tokens"] <= case["body"].get("max_completion_tokens", 64)
        if expected:
            assert body["choices"][0]["message"]["content"] == right[expected], row["custom_id"]
    failures = sum(status != 200 for _, status, _ in cases)
    assert done.returncode == 1 and json.loads(done.stdout)["failures"] == failures
    print(f"figure: {len(cases)} lines of the kinds in vLLM's documents: {len(cases) - failures} answered, "
          f"{failures} refused with the documented status and code")


def test_media_are_fetched_from_the_hosts_that_are_named(
    samples: tuple[Path, dict[str, Any], dict[str, Any]], served_url: str, tmp_path: Path
) -> None:
    folder, image, _ = samples
    picture, about = image["messages"][0]["content"]
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        lines = [line(name, messages=user({"type": "image_url", "image_url": {"url": f"http://{place}"}}, about))
                 for name, place in (("there", f"{host}/{picture['image']}"), ("missing", f"{host}/none.png"),
                                     ("not named", f"localhost:{server.server_port}/{picture['image']}"))]
        given, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
        done = invoke("run-batch", "-i", given, "-o", out, "--media-from", "127.0.0.0/8", "--media-from", host,
                      url=served_url)
        server.shutdown()
    found = [row["response"] for row in rows(out)]
    assert done.returncode == 1 and [response["status_code"] for response in found] == [200, 422, 400]
    assert found[0]["body"]["choices"][0]["message"]["content"] == image["answer"]


def test_a_batch_is_resumed(served_url: str, tmp_path: Path) -> None:
    lines = [line(str(number), messages=user("Hello"), max_tokens=2) for number in range(3)]
    lines[1]["body"]["n"] = 2
    given, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    first = invoke("run-batch", "-i", given, "-o", out, url=served_url)
    assert first.returncode == 1 and "1: n is not supported." in first.stderr
    before = rows(out)
    del lines[1]["body"]["n"], lines[2]["body"]["model"]
    write(given, lines)
    second = invoke("run-batch", "-i", given, "-o", out, "--model", MODEL, "--json", url=served_url)
    figures = json.loads(second.stdout)
    assert second.returncode == 0 and (figures["requests"], figures["resumed"], figures["failures"]) == (3, 2, 0)
    assert [row["custom_id"] for row in rows(out)] == ["0", "1", "2"]
    assert rows(out)[0] == before[0] and rows(out)[2] == before[2]


def test_a_file_that_is_not_a_batch_is_refused_before_anything_runs(redis_url: str, tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", [line("a", messages=user("x")), line("a", messages=user("y"))])
    out = tmp_path / "out.jsonl"
    refused(invoke("run-batch", "-i", given, "-o", out, url=redis_url), "bad_request", "in.jsonl", "line 2")
    refused(invoke("run-batch", "-i", given, "-o", given, url=redis_url), "bad_request", "same file")
    assert not out.exists() and len(rows(given)) == 2


def test_ctrl_c_cancels_the_jobs_in_flight_and_sorts_the_output(
    redis_url: str, start_null: Callable[..., NullWorker], tmp_path: Path
) -> None:
    start_null("--slots", "4", "--decode-ms", "10")
    names = [f"request {number}" for number in range(2000)]
    given = write(tmp_path / "in.jsonl", [line(name, messages=user(text(name)), max_tokens=2) for name in names])
    out = tmp_path / "out.jsonl"
    run = start("run-batch", "-i", given, "-o", out, "--window", 8, url=redis_url)
    until = time.monotonic() + SECONDS
    while len(whole(out)) < 20:
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=SECONDS)
    found = [row["custom_id"] for row in rows(out)]
    assert run.returncode == 130 and f"{len(found)} of 2000 are in {out}" in errors, errors
    assert found == [name for name in names if name in found] and 20 <= len(found) < 2000
    assert not queued(redis_url)


def queued(url: str) -> int:
    with connect(url) as connection:
        waiting: int = connection.llen(keys.waiting(keys.queue(MODEL)))
        return waiting


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_a_batch_killed_5_times(redis_url: str, start_null: Callable[..., NullWorker], tmp_path: Path) -> None:
    start_null("--slots", "1", "--decode-ms", "10")
    seed = int(os.environ.get("SEED", "11"))
    chance = random.Random(seed)
    lines = [line(f"request {number}", messages=user(f"Question {number}"), max_tokens=2) for number in range(LINES)]
    given, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    before: dict[str, Any] = {}
    for _ in range(KILLS):
        run = start("run-batch", "-i", given, "-o", out, "--window", 8, url=redis_url)
        try:
            enough, until = len(before) + 1 + chance.randrange(30), time.monotonic() + SECONDS
            while len(whole(out)) < enough:
                assert run.poll() is None and time.monotonic() < until
                time.sleep(0.01)
        finally:
            run.kill()
            _, errors = run.communicate()
        assert run.returncode == -signal.SIGKILL, errors
        now = whole(out)
        assert now.items() >= before.items()  # no row is lost
        before = now
    last = start("run-batch", "-i", given, "-o", out, url=redis_url)
    _, errors = last.communicate(timeout=SECONDS)
    assert last.returncode == 0, errors
    assert [row["custom_id"] for row in rows(out)] == [one["custom_id"] for one in lines]
    assert whole(out).items() >= before.items()
    print(f"figure: {LINES} requests, killed {KILLS} times (seed {seed}): {len(rows(out))} rows, {len(before)} of them "
          "before the last run, none lost, none twice")


def whole(out: Path) -> dict[str, str]:
    """The job that answered each request, from the whole lines; each request has one row at most."""
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    found = {row["custom_id"]: row["response"]["request_id"] for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found
