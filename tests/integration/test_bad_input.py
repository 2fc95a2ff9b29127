"""Bad input, given to the real command line and put on a real worker's queue.

Each kind gets its stable code, one sentence and its exit code; the worker serves the next job, and nothing of
another job is lost. How each kind is recognised is told by the unit tests of media, messages and codec.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import msgpack
import numpy as np
import pytest
from commands import USAGE_ERRORS, invoke, refused, rows, sailq, told
from rq.queue import Queue

from sailq.producer.client import Client
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.media.messages import prepare
from sailq.shared.rqjob import FUNCTION, Serializer
from sailq.shared.workers import live_workers

Row = dict[str, Any]


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 112, 112, "yuv420p"
        output.start_encoding()


def enormous(path: Path) -> None:
    """The header of a PNG of 30,000 × 30,000, and the begin of its data."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + fields + struct.pack(">I", zlib.crc32(fields)) + b"\0\0\0\x40IDAT")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good samples, one of each task, and the bad files beside them."""
    folder = tmp_path_factory.mktemp("samples")
    list(write_samples(7, 5, folder))
    clip = (folder / "clips" / "0000.mp4").read_bytes()
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    (folder / "truncated.mp4").write_bytes(clip[: len(clip) // 2])
    no_frames(folder / "no-frames.mp4")
    cv2.imwrite(str(folder / "thin.png"), np.zeros((4000, 1, 3), np.uint8))
    enormous(folder / "enormous.png")
    return folder


def video(path: str, **options: Any) -> Row:
    return {"type": "video", "video": path, **options}


def image(path: str) -> Row:
    return {"type": "image", "image": path}


BAD: dict[str, tuple[Row, str, str]] = {
    "missing": (video("no-such.mp4"), "bad_media", "no-such.mp4"),
    "text": (video("text.mp4"), "bad_media", "text.mp4"),
    "truncated": (video("truncated.mp4"), "bad_media", "truncated.mp4"),
    "no frames": (video("no-frames.mp4"), "bad_media", "no-frames.mp4"),
    "thin": (image("thin.png"), "bad_media", "4000 to 1"),
    "enormous": (image("enormous.png"), "bad_media", "enormous.png"),
    "nframes": (video("clips/0000.mp4", nframes=1000), "bad_request", "1000 frames"),
    "too long": ({"type": "text", "text": "word " * 20_000}, "too_long", "tokens"),
    "unknown part": ({"type": "audio", "audio": "a.wav"}, "unsupported", "'audio'"),
    "option": (video("clips/0000.mp4", frames=2), "bad_request", "'frames'"),
}
"""A part of a message, the code of the error that it is, and what the error names."""


def ask_of(part: Row, folder: Path) -> list[object]:
    if part["type"] == "text":
        return ["--prompt", part["text"]]
    kind = part["type"]
    return ["--vision-inputs", json.dumps([{**part, kind: str(folder / part[kind])}])]


@pytest.mark.parametrize("kind", BAD)
def test_one_question(kind: str, served_url: str, samples: Path) -> None:
    part, code, named = BAD[kind]
    if kind == "unknown part":  # --vision-inputs has a key for each kind of media and refuses other keys
        code, named = "bad_request", "vision_inputs"
    done = invoke("ask", *ask_of(part, samples), url=served_url)
    sentence = told(done, 2 if code in USAGE_ERRORS else 1)
    assert done.stdout == "" and sentence.startswith("sailq: ") and sentence.endswith(".") and named in sentence
    done = invoke("ask", *ask_of(part, samples), "--json", url=served_url)
    assert json.loads(done.stdout)["error"]["code"] == code


def test_a_batch_answers_all_good_clips(served_url: str, samples: Path, tmp_path: Path) -> None:
    truth = rows(samples / "truth.jsonl")
    bad = [{"messages": [{"role": "user", "content": [part]}], "kind": kind} for kind, (part, _, _) in BAD.items()]
    batch = [row for pair in zip(bad, truth * 2, strict=True) for row in pair]
    (samples / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in batch))
    out = tmp_path / "out.jsonl"
    done = sailq("caption", "--messages", samples / "batch.jsonl", "--out", out, "--json", url=served_url)
    assert (done.returncode, done.stderr) == (1, "")  # decoders of media write nothing to it, either
    assert json.loads(done.stdout)["failures"] == len(BAD)
    written = rows(out)
    assert [row["index"] for row in written] == list(range(len(batch)))
    for row in written:
        if (kind := row["metadata"].get("kind")) is None:
            assert row["error"] is None and row["text"] == row["metadata"]["answer"]
        else:
            _, code, named = BAD[kind]
            assert row["error"]["code"] == code and named in row["error"]["message"], kind
            assert row["error"]["message"].endswith(".") and "\n" not in row["error"]["message"]


@pytest.mark.parametrize(("arguments", "code", "named"), [
    (["--model", "no-such-model"], "unsupported", "'no-such-model'"),
    (["--vision-inputs", '{"video": [{"path": "a.mp4",}]}'], "bad_request", "vision_inputs"),
])
def test_a_usage_error(arguments: list[str], code: str, named: str, served_url: str) -> None:
    refused(invoke("ask", "--prompt", "x", *arguments, url=served_url), code, named)
    done = invoke("ask", "--prompt", "x", *arguments, "--json", url=served_url)
    assert done.returncode == 2 and json.loads(done.stdout)["error"]["code"] == code


def test_hostile_entries_among_other_jobs(
    served_url: str, samples: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    truth = rows(samples / "truth.jsonl")
    trap = tmp_path / "trap"
    with Client(served_url) as client:
        worker = [one.pid for one in live_workers(client.connection)]
        name = keys.queue("sailq-tiny")
        pickled = Queue(name, connection=client.connection)
        msgpacked = Queue(name, connection=client.connection, serializer=Serializer)
        unbounded = Queue(name, connection=client.connection, serializer=msgpack)

        def put(name: str, data: bytes) -> str:
            client.connection.hset(keys.job(name), mapping={"data": data, "created_at": "2026-01-01T00:00:00.0Z"})
            client.connection.rpush(keys.waiting(keys.queue("sailq-tiny")), name)
            return name

        hostile: list[Callable[[], str]] = [
            lambda: pickled.enqueue(os.system, f"touch {trap}").id,
            lambda: msgpacked.enqueue("os.system", f"touch {trap}").id,
            lambda: put("malformed", b"\x81\xa1v\xcc"),
            lambda: put("oversized", b"\xc0" * (2 << 20)),
            lambda: unbounded.enqueue(FUNCTION, "x" * 1_000_000).id,
        ]
        good, refused = [], []
        for push, row in zip(hostile, truth, strict=True):
            refused.append(push())
            good.append((client.submit_prepared(prepare(row["messages"], base=samples)), row["answer"]))
        for handle, answer in good:
            result = client.wait(handle.job, 60)
            assert (result.text, result.attempt) == (answer, 1)
        for job in refused:
            eventually(lambda job=job: client.connection.exists(keys.result(job)))
            ended = client.result(job)
            assert ended and ended.error
            assert ended.error.code in USAGE_ERRORS and ended.error.message.endswith("."), ended.error
        assert not trap.exists()
        assert [one.pid for one in live_workers(client.connection)] == worker
