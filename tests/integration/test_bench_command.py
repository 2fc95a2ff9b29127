"""`sailq bench` as a person or a script uses it: a real server, a real worker with sailq-tiny on the CPU."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from commands import invoke, living, refused, sockets, start

from sailq.producer.bench import encode_unseen, sample_clip
from sailq.shared import keys
from sailq.shared.codec import decode
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import Turn, media_parts
from sailq.shared.media.messages import prepare

COLUMNS = ("first token latency(s)", "token per second(tokens/s)")


@pytest.fixture
def vision_inputs(tmp_path: Path) -> str:
    """sophon-demo's --vision_inputs, for a clip that exists."""
    path = sample_clip(tmp_path)["video"]
    config = {"resized_height": 140, "resized_width": 210, "video_sample_num": 2}
    return json.dumps({"video": [{"path": path, "preprocess_config": config}], "image": []})


def check(report: dict[str, Any], *, repeat: int, jobs: int) -> None:
    """Compares the figures with each other, because none is known beforehand."""
    one, together = report["one_at_a_time"], report["all_at_once"]
    assert (one["jobs"], together["jobs"]) == (repeat, jobs)
    for spread in (one["first_token_latency"], one["tokens_per_second"]):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    # The latency of the first token includes all parts, and no part is longer than it.
    latency = one["first_token_latency"]["max"]
    assert {name: part for name, part in one["breakdown"].items() if not 0 <= part < latency} == {}, one
    assert set(one["breakdown"]) == {
        "sample", "queue_wait", "fetch", "preprocess", "vision_encode", "prefill", "other"}
    assert 0 < report["vision_tokens"] < report["prompt_tokens"]
    assert together["in_flight"] == min(jobs, 2 * report["slots"])
    captions_per_second = together["captions_per_hour"] / 3600
    assert captions_per_second * together["wall"] == pytest.approx(jobs)
    # Each job asks the same question about nearly the same pixels.
    assert together["tokens_per_second"] / captions_per_second == pytest.approx(one["completion_tokens"], rel=0.8)


def test_sophon_demos_command_line_without_a_server(vision_inputs: str) -> None:
    done = invoke("bench", "--vision_inputs", vision_inputs, "--repeat", 2, "--slots", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert all(column in done.stdout for column in COLUMNS)
    assert [line for line in done.stdout.splitlines() if "3.55" in line and "9.67" in line]  # from sophon-demo
    said = " ".join(done.stdout.split())
    assert "2 jobs" in said and "8 jobs, 4 in flight for 2 slots" in said
    assert not living(sockets(done.stderr)) and not Path(sockets(done.stderr)).exists()


def test_running_workers_are_measured(served_url: str, vision_inputs: str) -> None:
    done = invoke("bench", "--vision-inputs", vision_inputs, "--repeat", 3, "--jobs", 5, "--json", url=served_url)
    assert done.returncode == 0, done.stderr
    assert "sailq-tiny" in done.stderr
    report = json.loads(done.stdout)
    check(report, repeat=3, jobs=5)
    (worker,) = json.loads(invoke("status", "--json", url=served_url).stdout)["workers"]
    assert (report["model"], report["device"], report["slots"]) == (worker["model"], worker["device"], worker["slots"])
    assert report["published"]["first_token_latency"] == 3.55


def test_the_parts_of_one_job_add_up_to_its_latency_and_no_clip_is_repeated(
    redis_url: str, connection: redis.Redis
) -> None:
    size = ("--resized-height", 112, "--resized-width", 140)
    done = invoke("bench", "--repeat", 1, "--jobs", 2, "--threads", 1, *size, "--json", url=redis_url)
    assert done.returncode == 0, done.stderr
    assert "server at" not in done.stderr
    report = json.loads(done.stdout)
    check(report, repeat=1, jobs=2)
    one = report["one_at_a_time"]
    assert sum(one["breakdown"].values()) == pytest.approx(one["first_token_latency"]["median"])
    turns = [decode(Turn, connection.lindex(key, 0)) for key in connection.scan_iter(keys.turns("*"))]
    parts = [part for turn in turns for part in media_parts(turn.messages)]
    assert len({part.blob for part in parts}) == len(turns) == 4
    assert {(part.height, part.width) for part in parts} == {(112, 140)}
    assert not connection.zcard("sailq:workers")


def test_a_rendered_clip_has_the_size_that_was_asked_for(redis_url: str, connection: redis.Redis) -> None:
    size = ("--clip", "4x112x140", "--max-new-tokens", 3)
    done = invoke("bench", "--repeat", 1, "--jobs", 2, "--threads", 1, *size, "--json", url=redis_url)
    report = json.loads(done.stdout)
    turns = [decode(Turn, connection.lindex(key, 0)) for key in connection.scan_iter(keys.turns("*"))]
    parts = [part for turn in turns for part in media_parts(turn.messages)]
    assert {(part.frames, part.height, part.width) for part in parts} == {(4, 112, 140)}
    assert report["vision_tokens"] == 2 * 4 * 5
    assert report["estimate"] is None  # only a bmodel has an estimate


@pytest.mark.parametrize(("frames", "kept"), [(2, 2), (19, 20), (21, 20)])
def test_a_rendered_clip_has_enough_frames_for_an_even_number(tmp_path: Path, frames: int, kept: int) -> None:
    prepared = prepare([{"role": "user", "content": [sample_clip(tmp_path, (frames, 56, 56))]}])
    assert [part.frames for part in media_parts(prepared.messages)] == [kept]


def test_the_mark_that_makes_a_clip_unique_survives_jpeg_and_stays_in_its_corner() -> None:
    frames = np.full((2, 56, 84, 3), 90, np.uint8)
    (first, blob), (second, other) = encode_unseen(frames), encode_unseen(frames)
    assert first != second
    differs = decode_frames(blob, (2, 56, 84)) != decode_frames(other, (2, 56, 84))
    assert differs[:, :8, :8].any(axis=(1, 2, 3)).all()
    differs[:, :16, :16] = False  # a colour block of the JPEG has 16 × 16 pixels
    assert not differs.any() and (frames == 90).all()


def test_worker_options_are_refused_if_a_worker_is_running(served_url: str) -> None:
    done = invoke("bench", "--slots", 2, "--device", "cpu", url=served_url)
    refused(done, "bad_request", "sailq-tiny", "--device", "--slots")


@pytest.mark.parametrize(("arguments", "code", "named"), [
    (["--vision-inputs", '{"video": ['], "bad_request", "vision_inputs"),
    (["--vision-inputs", '{"video": ["/no/such.mp4"]}'], "bad_media", "/no/such.mp4"),
    (["--max-new-tokens", "0"], "bad_request", "max_new_tokens"),
    (["--clip", "4x112"], "bad_request", "4x112"),
    (["--clip", "0x112x112"], "bad_request", "0x112x112"),
    (["--clip", "4x112x112", "--vision-inputs", "{}"], "bad_request", "--clip"),
    (["--redis-url", "unix:///no/such.sock"], "server_unavailable", "/no/such.sock"),
])
def test_errors_are_reported_before_anything_is_started(arguments: list[str], code: str, named: str) -> None:
    refused(invoke("bench", *arguments), code, named)


def test_errors_are_json_with_the_option_json(served_url: str) -> None:
    done = invoke("bench", "--prompt", "word " * 20_000, "--json", url=served_url)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "too_long"


def test_a_worker_that_refuses_its_options_is_a_usage_error(redis_url: str) -> None:
    done = invoke("bench", "--device", "gpu", url=redis_url)
    assert done.returncode == 2 and done.error and done.error.code == "bad_request"
    assert "'gpu'" in str(done.error) and "tpu:N" in str(done.error) and "Traceback" not in done.stderr


def test_ctrl_c_stops_what_was_started() -> None:
    process = start("bench", "--repeat", 10_000, "--threads", 1)
    try:
        assert process.stderr is not None
        begun = process.stderr.readline() + process.stderr.readline()  # the server and the worker run
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    assert "sailq-tiny" in begun
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("sailq: ")
    assert "Traceback" not in errors
    assert not living(sockets(begun)) and not Path(sockets(begun)).exists()
