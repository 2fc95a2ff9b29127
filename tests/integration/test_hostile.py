"""Other programs can put anything on the queue. The worker refuses it and serves the next job."""

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
from rq.queue import Queue

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess
from sailq.shared import keys
from sailq.shared.errors import quoted
from sailq.shared.frames import encode_frames
from sailq.shared.media.messages import prepare
from sailq.shared.rqjob import FUNCTION, Serializer

QUEUE = keys.queue("sailq-tiny")
DATE = b"2026-01-01T00:00:00.0Z"
SIZE = 84
MANY = 500_000
EMPTY_LISTS = b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY
CLAIMS = b"\xdd\x05\xf5\xe1\x00" * 60
"""Sixty lists in each other, each of which says that it is of a hundred million."""

BAD, UNSUPPORTED, MEDIA, LONG = "bad_request", "unsupported", "bad_media", "too_long"


HELLO = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
ARRAY = msgpack.ExtType(1, msgpack.packb(["u1", [3], b"abc"]))
ANSWERED = None
"""Nothing of it does harm: the job is run as any other."""


def call(**changes: object) -> bytes:
    """A job's data as RQ encodes a good call, but for `changes` of its arguments."""
    return bytes(msgpack.packb([FUNCTION, None, [], {"messages": HELLO, **changes}]))


def shows(**changes: object) -> dict[str, object]:
    part = {"type": "image", "blob": "a" * 64, "frames": 1, "height": SIZE, "width": SIZE, **changes}
    return {"messages": [{"role": "user", "content": [part]}]}


# The function call in RQ's record of a job.
CALLS: dict[str, tuple[bytes, str | None]] = {
    "with-another-jobs-id": (msgpack.packb([FUNCTION, None, ["victim"], {}]), BAD),
    "with-its-messages-unnamed": (msgpack.packb([FUNCTION, None, [HELLO], {}]), BAD),
    "with-nothing": (msgpack.packb([FUNCTION, None, [], {}]), BAD),
    "with-an-array": (msgpack.packb([FUNCTION, None, [ARRAY], {}]), BAD),
    "of-an-array": (msgpack.packb([ARRAY, None, [], {}]), UNSUPPORTED),
    "with-a-script": (call(timeout="import os"), BAD),
    "with-names-of-bytes": (call(**{"other": 1}).replace(b"\xa5other", b"\xc4\x05other"), BAD),
    "of-a-method": (msgpack.packb(["system", "os", ["true"], {}]), UNSUPPORTED),
    "of-an-instance": (msgpack.packb([FUNCTION, "os", [], {"messages": HELLO}]), BAD),
    "of-nothing": (msgpack.packb([None, None, [], {}]), UNSUPPORTED),
    "of-no-bytes": (b"", BAD),
    "garbled": (b"\x81\xa1v\xcc", BAD),
    "lists-of-nothing": (EMPTY_LISTS, BAD),
    "lists-that-claim": (CLAIMS, BAD),
    "one-list-that-claims": (b"\xdd\xff\xff\xff\xff", BAD),
    "nested-for-ever": (b"\x91" * 5000, BAD),
    "extension-in-extension": (msgpack.packb(msgpack.ExtType(1, msgpack.packb(msgpack.ExtType(1, b"\x90")))), BAD),
    "a-timestamp": (b"\xd6\xff\0\0\0\0", BAD),
    "a-map-of-maps-as-keys": (b"\x81\x80\x80", BAD),
    "a-compressed-bomb": (zlib.compress(bytes(256 << 20)), BAD),
    "a-bomb-that-is-cut-short": (zlib.compress(bytes(64 << 20))[:-100], BAD),
    "larger-than-any": (bytes(2 << 20), BAD),
    "a-result": (msgpack.packb({"v": 1, "type": "result", "body": {}}), BAD),
    "of-another-version": (call(version=99), BAD),
    "of-an-array-as-version": (call(version=ARRAY), BAD),
    "of-another-name": (call(id="victim"), BAD),
    "of-another-model": (call(model="another"), BAD),
    "of-empty-lists": (call(metadata=0)[:-1] + EMPTY_LISTS, BAD),
    "of-a-line-of-the-log": (call(**{"\nrefused victim: forged": 1}), BAD),
    "no-number-to-sample-with": (call(options={"temperature": float("nan")}), BAD),
    "no-number-in-metadata": (call(metadata={"a": [float("nan")]}), BAD),
    "no-end-in-sight": (call(deadline=float("inf")), BAD),
    "bytes-in-metadata": (call(metadata={"a": b"\xff"}), BAD),
    "negative-frames": (call(**shows(frames=-1)), BAD),
    "negative-height": (call(**shows(height=-84)), BAD),
    "a-million-by-a-million": (call(**shows(height=28 << 20, width=28 << 20)), BAD),
    "a-million-frames": (call(**shows(type="video", frames=10**6)), BAD),
    "more-tokens-than-any": (call(options={"max_new_tokens": 2**40}), BAD),
    "too-many-pixels": (call(**shows(height=8176, width=8176)), LONG),
    "too-much-text": (call(messages=[{"role": "user", "content": [{"type": "text", "text": "why " * 60_000}]}]), LONG),
    "of-a-clip-that-is-not-there": (call(**shows(blob="0" * 64)), MEDIA),
}
# The other fields of RQ's hash, beside a good call.
FIELDS: dict[str, tuple[dict[str, bytes], str | None]] = {
    "no-date": ({"created_at": b"yesterday"}, BAD),
    "retries-without-end": ({"retries_left": b"99999999999"}, UNSUPPORTED),
    "callback-at-success": ({"success_callback_name": b"os.system"}, UNSUPPORTED),
    "callback-at-failure": ({"failure_callback_name": b"os.system", "failure_callback_timeout": b"9"}, UNSUPPORTED),
    "callback-at-its-stop": ({"stopped_callback_name": b"os.system"}, UNSUPPORTED),
    "repeats": ({"repeats_left": b"1000000", "repeat_intervals": b"[0]"}, UNSUPPORTED),
    "of-a-group": ({"group_id": b"g"}, UNSUPPORTED),
    "of-a-limited-rate": ({"rate_limit_key": b"k", "rate_limit_concurrency": b"0"}, UNSUPPORTED),
    "of-a-foreign-key": ({"conversation": b"x:turns\nrq:queue"}, BAD),
    "of-no-conversation": ({"conversation": b""}, BAD),
    "too-many-turns": ({"conversation": b"too-many-turns", "turn": b"1"}, LONG),
    "turns-of-another-kind": ({"conversation": b"turns-of-another-kind", "turn": b"1"}, ANSWERED),
    "a-turn-of-nothing": ({"turn": b"1"}, ANSWERED),
    "a-negative-turn": ({"turn": b"-1"}, ANSWERED),
    "a-turn-of-digits": ({"turn": b"9" * 5000}, ANSWERED),
    "no-text": ({"origin": b"\xff\xfe"}, ANSWERED),
    "of-another-queue": ({"origin": b"another"}, ANSWERED),
    "no-such-status": ({"status": b"running with scissors"}, ANSWERED),
    "a-life-without-end": ({"result_ttl": b"9" * 30}, ANSWERED),
    "a-life-of-letters": ({"result_ttl": b"long"}, ANSWERED),
    "a-number-of-digits": ({"failure_ttl": b"9" * 5000}, ANSWERED),
    "a-time-without-end": ({"timeout": b"9" * 5000}, ANSWERED),
    "waits-for-a-number": ({"dependency_ids": b"7"}, ANSWERED),
    "waits-in-brackets": ({"dependency_ids": b"[" * 100_000}, ANSWERED),
    "a-history-of-nothing": ({"history": b'{"a": 1}', "attempt": b"x", "spent": b"x"}, ANSWERED),
    "clips-of-another-kind": ({"clips": b"of-another-kind nowhere \xff"}, ANSWERED),
    "an-inbox-of-another-kind": ({"inbox": b"of-another-kind \xff"}, ANSWERED),
    "a-field-without-a-name": ({"\udcff": b"x"}, ANSWERED),
}


def blobs() -> dict[str, tuple[bytes, str]]:
    """Invalid contents of an image's blob, and the error of each."""
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
    record = {"data": call(), "created_at": DATE, **(fields or {})}
    connection.hset(keys.job(name), mapping={field.encode(errors="surrogateescape"): record[field] for field in record})
    connection.rpush(keys.waiting(QUEUE), name)


def test_hostile_jobs_are_refused_each_with_a_line_in_the_log_while_others_are_answered(
    client: Client, connection: redis.Redis, worker: ManagedProcess, eventually: Callable[..., None], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    pickled = Queue(QUEUE, connection=connection)
    msgpacked = Queue(QUEUE, connection=connection, serializer=Serializer)
    greeting = prepare([{"role": "user", "content": "hi"}])
    good = [client.submit_prepared(greeting).job]

    refused: dict[str, str] = {
        pickled.enqueue(os.system, f"touch {trap}").id: BAD,
        pickled.enqueue(FUNCTION, "x", meta={"payload": object}).id: BAD,
        pickled.enqueue(os.system, f"touch {trap}", on_failure=Callback(os.system)).id: UNSUPPORTED,
        msgpacked.enqueue("os.system", f"touch {trap}").id: UNSUPPORTED,
        msgpacked.enqueue("builtins.eval", f"open({str(trap)!r}, 'w')").id: UNSUPPORTED,
    }
    for name, (data, code) in CALLS.items():
        push(connection, name, {"data": data})
        refused[name] = str(code)
    good.append(client.submit_prepared(greeting).job)

    connection.rpush(keys.turns("too-many-turns"), *[bytes(1 << 20)] * 17)
    connection.hset(keys.turns("turns-of-another-kind"), "a", "b")
    for key in (keys.clip("of-another-kind"), keys.inbox("of-another-kind")):
        connection.set(key, "x")
    webhook = f'[{{"url": "http://127.0.0.1:{listener.getsockname()[1]}/", "events": ["failed", "finished"]}}]'
    for name, (fields, code) in {**FIELDS, "webhooks": ({"webhooks": webhook.encode()}, UNSUPPORTED)}.items():
        push(connection, name, fields)
        if code is ANSWERED:
            good.append(name)
        else:
            refused[name] = code
    for name, (blob, code) in blobs().items():
        digest = hashlib.sha256(blob).hexdigest()
        connection.hset(keys.clip(digest), "data", blob)
        push(connection, f"clip-{name}", {"data": call(**shows(blob=digest))})
        refused[f"clip-{name}"] = code
    connection.set(keys.job("no-hash"), b"x")
    connection.hset(keys.job("without-data"), "origin", "x")
    connection.rpush(keys.waiting(QUEUE), "no-hash", "without-data")
    refused |= {"no-hash": BAD, "without-data": BAD}
    # None of these can be the id of a waiting job, so they get no result.
    dropped: list[str | bytes] = ["a name", "two\nrefused lines: here", "x" * 100_000, "a/../b", ""]
    for name in dropped:
        push(connection, str(name))
    dropped += ["nowhere", b"\xff\xfe", good[0], "of-another-version"]
    connection.rpush(keys.waiting(QUEUE), *dropped[-4:])
    good.append(client.submit_prepared(greeting).job)

    for job in good:
        eventually(lambda job=job: connection.exists(keys.result(job)))
        result: Any = client.result(job)
        assert result.error is None and result.attempt == 1, (job, result)
    for name, code in refused.items():
        eventually(lambda name=name: connection.exists(keys.result(name)))
        error: Any = client.result(name).error  # type: ignore[union-attr]
        assert error and error.code == code, (name, error)
        assert error.message.endswith((".", "…")) and error.message.isprintable() and len(error.message) < 1000

    def told(name: str) -> int:
        return sum(f"refused {quoted(name)}: " in line for line in worker.log.read_text().splitlines())

    for name in refused:
        eventually(lambda name=name: told(name))
        assert told(name) == 1, name
    log = worker.log.read_text()
    assert "Traceback" not in log and max(map(len, log.splitlines())) < 1000 and "\nrefused victim" not in log
    assert not trap.exists() and not connection.exists(keys.result("victim"))
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    assert client.wait(client.submit_prepared(greeting).job, 60).error is None
    eventually(lambda: not connection.exists(keys.waiting(QUEUE), f"rq:wip:{QUEUE}", keys.LEASES))
    assert connection.keys(keys.clip("*")) == [keys.clip("of-another-kind").encode()]
    worker.check()
    hostile = len(refused) + len(dropped)
    print(f"\nfigure: hostile jobs: {hostile} put on the queue, {len(refused)} refused with a typed error and a line "
          f"in the log for each, {len(dropped)} that name no waiting job dropped; worker alive, {len(good) + 1} other "
          f"jobs answered")
