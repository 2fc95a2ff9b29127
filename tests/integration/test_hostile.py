"""Whoever may write to the server may put anything on the queue: it is refused, and the worker serves the next job."""

from __future__ import annotations

import hashlib
import os
import socket
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
import pytest
import redis
from rq.job import Callback
from rq.job import Job as RQJob
from rq.queue import Queue
from sailq.producer.client import Client
from sailq.producer.companion import Companion
from sailq.producer.messages import prepare
from sailq.shared import keys
from sailq.shared.errors import quoted
from sailq.shared.frames import encode_frames
from sailq.shared.rqjob import FUNCTION, Serializer

QUEUE = keys.queue("sailq-tiny")
DATE = b"2026-01-01T00:00:00.0Z"
SIZE = 84
MANY = 500_000
EMPTY_LISTS = b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY
CLAIMS = b"\xdd\x05\xf5\xe1\x00" * 60
"""Sixty lists in each other, each of which says that it is of a hundred million."""

BAD, UNSUPPORTED, MEDIA, LONG = "bad_request", "unsupported", "bad_media", "too_long"


def call(*arguments: object) -> bytes:
    return bytes(msgpack.packb([FUNCTION, None, arguments, {}]))


def record(name: str, **changes: object) -> bytes:
    """A job as sailq encodes it, but for `changes`."""
    body = {
        "id": name, "conversation": name, "model": "sailq-tiny", "submitted_at": 1e9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    return bytes(msgpack.packb({"v": 1, "type": "job", "body": {**body, **changes}}))


def shows(**changes: object) -> dict[str, object]:
    part = {"type": "image", "blob": "a" * 64, "frames": 1, "height": SIZE, "width": SIZE, **changes}
    return {"messages": [{"role": "user", "content": [part]}]}


# The hash that RQ keeps of a job, in which sailq's is good but for these fields.
RQ_FIELDS: dict[str, dict[str, bytes]] = {
    "calls-with-another-jobs-id": {"data": call("victim")},
    "calls-with-nothing": {"data": call()},
    "calls-with-a-number": {"data": call(7)},
    "calls-with-an-array": {"data": call(msgpack.ExtType(1, msgpack.packb(["u1", [3], b"abc"])))},
    "calls-with-a-script": {"data": msgpack.packb([FUNCTION, None, ["a"], {"timeout": "import os"}])},
    "calls-a-method": {"data": msgpack.packb(["system", "os", ["true"], {}])},
    "calls-nothing": {"data": msgpack.packb([None, None, [], {}])},
    "lists-of-nothing": {"data": EMPTY_LISTS},
    "lists-that-claim": {"data": CLAIMS},
    "one-list-that-claims": {"data": b"\xdd\xff\xff\xff\xff"},
    "nested-for-ever": {"data": b"\x91" * 5000},
    "extension-in-extension": {"data": msgpack.packb(msgpack.ExtType(1, msgpack.packb(msgpack.ExtType(1, b"\x90"))))},
    "a-timestamp": {"data": b"\xd6\xff\0\0\0\0"},
    "a-map-of-maps-as-keys": {"data": b"\x81\x80\x80"},
    "a-compressed-bomb": {"data": zlib.compress(bytes(256 << 20))},
    "a-bomb-that-is-cut-short": {"data": zlib.compress(bytes(64 << 20))[:-100]},
    "no-date": {"created_at": b"yesterday"},
    "no-text": {"origin": b"\xff\xfe"},
    "no-such-status": {"status": b"running with scissors"},
    "a-life-without-end": {"result_ttl": b"9" * 30},
    "a-number-of-digits": {"failure_ttl": b"9" * 5000},
    "retries-without-end": {"retries_left": b"99999999999"},
    "waits-for-a-number": {"dependency_ids": b"7"},
    "waits-for-many": {"dependency_ids": b'["a", "b"]'},
    "larger-than-any": {"data": bytes(2 << 20)},
    "waits-in-brackets": {"dependency_ids": b"[" * 100_000},
}
# These RQ would obey; here they change nothing, and nobody has submitted the job.
RQ_FEATURES: dict[str, dict[str, bytes]] = {
    "callback-at-success": {"success_callback_name": b"os.system"},
    "callback-at-failure": {"failure_callback_name": b"os.system", "failure_callback_timeout": b"9" * 30},
    "callback-at-its-stop": {"stopped_callback_name": b"os.system"},
    "repeats": {"repeats_left": b"1000000", "repeat_intervals": b"[0]"},
    "of-a-group": {"group_id": b"g"},
    "of-a-limited-rate": {"rate_limit_key": b"k", "rate_limit_concurrency": b"0"},
    "of-another-queue": {"origin": b"another"},
}
# What sailq keeps of a job.
RECORDS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "garbled": (lambda name: b"\x81\xa1v\xcc", BAD),
    "oversized": (lambda name: b"\xc0" * (2 << 20), BAD),
    "of-another-version": (lambda name: msgpack.packb({"v": 2, "type": "job", "body": {}}), BAD),
    "of-an-array-as-version": (lambda name: msgpack.packb(
        {"v": msgpack.ExtType(1, msgpack.packb(["u1", [3], b"abc"])), "type": "job", "body": {}}), BAD),
    "a-result": (lambda name: msgpack.packb({"v": 1, "type": "result", "body": {}}), BAD),
    "of-another-name": (lambda name: record("victim"), BAD),
    "of-empty-lists": (lambda name: record(name, metadata=0)[:-1] + EMPTY_LISTS, BAD),
    "of-a-foreign-key": (lambda name: record(name, conversation="x:turns\nrq:queue"), BAD),
    "of-a-line-of-the-log": (lambda name: record(name, **{"\nrefused victim: forged": 1}), BAD),
    "no-number-to-sample-with": (lambda name: record(name, options={"temperature": float("nan")}), BAD),
    "no-number-in-metadata": (lambda name: record(name, metadata={"a": [float("nan")]}), BAD),
    "no-end-in-sight": (lambda name: record(name, deadline=float("inf")), BAD),
    "bytes-in-metadata": (lambda name: record(name, metadata={"a": b"\xff"}), BAD),
    "a-negative-turn": (lambda name: record(name, turn=-1), BAD),
    "negative-frames": (lambda name: record(name, **shows(frames=-1)), BAD),
    "negative-height": (lambda name: record(name, **shows(height=-84)), BAD),
    "a-million-by-a-million": (lambda name: record(name, **shows(height=28 << 20, width=28 << 20)), BAD),
    "a-million-frames": (lambda name: record(name, **shows(type="video", frames=10**6)), BAD),
    "more-tokens-than-any": (lambda name: record(name, options={"max_new_tokens": 2**40}), BAD),
    "too-many-pixels": (lambda name: record(name, **shows(height=8176, width=8176)), LONG),
    "too-much-text": (lambda name: record(
        name, messages=[{"role": "user", "content": [{"type": "text", "text": "why " * 60_000}]}]), LONG),
    "too-many-turns": (lambda name: record(name, turn=1), LONG),
    "for-another-model": (lambda name: record(name, model="another"), UNSUPPORTED),
    "of-a-blob-that-is-not-there": (lambda name: record(name, **shows(blob="0" * 64)), MEDIA),
}


def blobs() -> dict[str, tuple[bytes, str]]:
    """What an image's blob may hold, and how it is refused."""
    noise = np.random.default_rng(4).integers(0, 255, (1, SIZE, SIZE, 3), np.uint8)
    fields = msgpack.unpackb(encode_frames(noise)[1])
    (jpeg,) = fields["jpeg"]
    scan, frame = jpeg.index(b"\xff\xda"), jpeg.index(b"\xff\xc0")
    large = jpeg[: frame + 5] + b"\x3e\x80\x3e\x80" + jpeg[frame + 9 :]
    behind = b"\xff\xc0\0\x11\x08" + SIZE.to_bytes(2, "big") * 2 + bytes(9)
    hidden = jpeg[:2] + b"\xff\xe0\0\x02\xff\x01" + len(large).to_bytes(2, "big") + large[2:] + behind
    progressive = cv2.imencode(".jpg", noise[0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    scans = jpeg[:scan] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" * 2000 + b"\xff\xd9"
    forged = {"larger-than-it-says": large, "larger-than-it-seems": hidden, "of-a-thousand-scans": scans,
              "progressive": progressive, "no-jpeg": b"GIF89a"}
    return {
        "of-lists": (EMPTY_LISTS[:20_000], BAD),
        "of-claims": (CLAIMS, BAD),
        "of-too-many-bytes": (msgpack.packb({**fields, "jpeg": [bytes(1 << 20)]}), BAD),
        "of-more-frames": (msgpack.packb({**fields, "jpeg": [jpeg] * 2}), BAD),
        **{name: (msgpack.packb({**fields, "jpeg": [data]}), MEDIA) for name, data in forged.items()},
    }


def push(connection: redis.Redis, name: str, fields: Mapping[str, bytes] | None = None) -> None:
    connection.hset(RQJob.key_for(name), mapping={"data": call(name), "created_at": DATE, **(fields or {})})
    connection.rpush(f"rq:queue:{QUEUE}", name)


def test_hostile_jobs_are_refused_each_with_a_line_in_the_log_while_others_are_answered(
    client: Client, connection: redis.Redis, worker: Companion, eventually: Callable[..., None], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    pickled = Queue(QUEUE, connection=connection)
    msgpacked = Queue(QUEUE, connection=connection, serializer=Serializer)
    greeting = prepare([{"role": "user", "content": "hi"}])
    good = [client.submit_prepared(greeting)]

    refused: dict[str, str] = {
        pickled.enqueue(os.system, f"touch {trap}").id: BAD,
        pickled.enqueue(FUNCTION, "x", meta={"payload": object}).id: BAD,
        pickled.enqueue(os.system, f"touch {trap}", on_failure=Callback(os.system)).id: BAD,
        msgpacked.enqueue("os.system", f"touch {trap}").id: UNSUPPORTED,
        msgpacked.enqueue("builtins.eval", f"open({str(trap)!r}, 'w')").id: UNSUPPORTED,
    }
    for name, fields in RQ_FIELDS.items():
        push(connection, name, fields)
        refused[name] = UNSUPPORTED if name in {"calls-a-method", "calls-nothing"} else BAD
    webhook = f'[{{"url": "http://127.0.0.1:{listener.getsockname()[1]}/", "events": ["failed", "finished"]}}]'
    for name, fields in {**RQ_FEATURES, "webhooks": {"webhooks": webhook.encode()}}.items():
        push(connection, name, fields)
        refused[name] = BAD
    good.append(client.submit_prepared(greeting))
    connection.rpush(keys.turns("too-many-turns"), *[bytes(1 << 20)] * 17)
    for name, (make, code) in RECORDS.items():
        connection.hset(keys.job(name), "request", make(name))
        push(connection, name)
        refused[name] = code
    for name, (blob, code) in blobs().items():
        digest = hashlib.sha256(blob).hexdigest()
        connection.set(keys.blob(digest), blob)
        connection.hset(keys.job(f"blob-{name}"), "request", record(f"blob-{name}", **shows(blob=digest)))
        push(connection, f"blob-{name}")
        refused[f"blob-{name}"] = code
    connection.set(RQJob.key_for("no-hash"), b"x")
    connection.rpush(f"rq:queue:{QUEUE}", "no-hash")
    refused["no-hash"] = BAD
    # None of these can be a job's name, so that they have no result.
    dropped = ["nowhere", "without-data", "a name", "two\nrefused lines: here", "x" * 100_000, "a/../b"]
    connection.hset(RQJob.key_for("without-data"), "origin", "x")
    connection.rpush(f"rq:queue:{QUEUE}", *dropped[:2])
    for name in dropped[2:]:
        push(connection, name)
    connection.rpush(f"rq:queue:{QUEUE}", b"\xff\xfe")
    good.append(client.submit_prepared(greeting))

    for handle in good:
        result = client.wait(handle.job, 60)
        assert result.error is None and result.attempt == 1
    for name, code in refused.items():
        eventually(lambda name=name: connection.exists(keys.result(name)))
        error: Any = client.result(name).error  # type: ignore[union-attr]
        assert error and error.code == code, (name, error)
        assert error.message.endswith((".", "…")) and error.message.isprintable() and len(error.message) < 1000

    def told(name: str) -> int:
        lines = worker.log.read_text().splitlines()
        return sum(f"refused {quoted(name)}: " in line or f"dropped {quoted(name)}: " in line for line in lines)

    for name in [*refused, *dropped]:
        eventually(lambda name=name: told(name))
        assert told(name) == 1, name
    eventually(lambda: "dropped b'\\xff\\xfe' from the queue" in worker.log.read_text())
    log = worker.log.read_text()
    assert "Traceback" not in log and max(map(len, log.splitlines())) < 1000
    assert not trap.exists() and not connection.exists(keys.result("victim"))
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    assert client.wait(client.submit_prepared(greeting).job, 60).error is None
    eventually(lambda: connection.llen(f"rq:queue:{QUEUE}") == connection.zcard(f"rq:wip:{QUEUE}") == 0)
    eventually(lambda: not connection.exists(f"rq:queue:{QUEUE}:intermediate"))
    worker.check()
    hostile = len(refused) + len(dropped) + 1
    print(f"\nfigure: hostile jobs: {hostile} put on the queue, {len(refused)} refused with a typed error, "
          f"{hostile - len(refused)} that can have no result dropped, a line in the log for each; worker alive, "
          f"{len(good) + 1} other jobs answered")
