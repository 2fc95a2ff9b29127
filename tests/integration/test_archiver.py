"""The archive of a real server: each ended job is stored once, with its pictures, whatever dies meanwhile."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import redis
from answering import TTLS, Answerer, take
from commands import invoke, refused, rows, start
from rq import Queue

from sailq.producer.archive.archiver import Archiver, WriterLock
from sailq.producer.archive.entries import entry_of
from sailq.producer.archive.retention import Retention
from sailq.producer.archive.store import Archive
from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.producer.results import EndedJob, Position, ResultsReader
from sailq.shared import keys
from sailq.shared.codec import encode
from sailq.shared.connection import connect
from sailq.shared.errors import SailqError
from sailq.shared.frames import encode_frames
from sailq.shared.jobs import Failure, FramesPart, Message, Result, TextPart
from sailq.shared.media.messages import Prepared
from sailq.shared.rqjob import Serializer
from sailq.worker.queue.job_store import JobStore

HELLO = [{"role": "user", "content": "Hello"}]


def video(seed: int = 0, height: int = 56) -> list[dict[str, object]]:
    frames = list(np.random.default_rng(seed).integers(0, 256, (4, height, 84, 3), np.uint8))
    return [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "What moves?"}]}]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "captions.db", create=True) as archive:
        yield archive


@pytest.fixture
def archiver(connection: redis.Redis, archive: Archive) -> Archiver:
    """It has created the stream."""
    archiver = Archiver(connection, archive, Retention())
    archiver.step(0.001)
    return archiver


def test_a_result_is_stored_with_its_question_times_and_frames(
    client: Client, connection: redis.Redis, archive: Archive, archiver: Archiver
) -> None:
    metadata = {"camera": "gate", "source": "a.mp4", "time": "2001-09-09T01:46:40Z", "more": [1, {"x": None}]}
    digest, data = encode_frames(np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8))
    clip = FramesPart(type="video", blob=digest, frames=4, height=56, width=84, times=(0.0, 0.5, 1.0, 2.0), fps=2.0)
    asked = Message(role="user", content=(clip, TextPart(text="What moves?")))
    job = client.submit_prepared(Prepared((asked,), {digest: data}, 2), metadata=metadata).job
    store = JobStore(connection, connection, TTLS, "test")
    claim = take(store, connection, job)
    assert store.finish(job, claim.execution, Result(
        job=job, conversation=job, turn=0, text="A 红色 ball.", finish_reason="stop",
        finished_at=1_500_000_000.0, metadata=metadata,
    ))
    assert archiver.step(5) == 1
    (caption,) = archive.search("红色", camera="gate")
    assert caption.text == "A 红色 ball." and caption.job == job and caption.question == "What moves?"
    assert caption.time == 1_000_000_000 and caption.source == "a.mp4" and caption.metadata == metadata
    (medium,) = caption.media
    assert medium == clip.model_dump() | {"times": [0.0, 0.5, 1.0, 2.0]} and archive.clip(digest) == data
    small = cv2.imdecode(np.frombuffer(archive.thumbnail(caption.id) or b"", np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (56, 84, 3)
    assert not connection.exists(keys.clip(digest)) and int(connection.get(keys.CLIP_BYTES)) == 0


def test_each_end_that_a_worker_writes_is_stored(
    client: Client, connection: redis.Redis, answerer: Answerer, archive: Archive, archiver: Archiver
) -> None:
    """Answered and failed, from sailq's client and from RQ's `enqueue`; but not cancelled before a worker took it."""
    answered, cancelled, failed = (client.submit(video(seed)).job for seed in range(3))
    queue = Queue(keys.queue("sailq-tiny"), connection=connection, serializer=Serializer)
    foreign = queue.enqueue("sailq.answer", messages=HELLO, metadata={"camera": "yard"}).id
    answerer.answer(answered, "Yes.")
    assert client.cancel(cancelled) == "cancelled"
    store = JobStore(connection, connection, TTLS, "test")
    for job, code in ((failed, "internal"), (foreign, "too_long")):
        claim = take(store, connection, job)
        assert store.finish(job, claim.execution, Result(
            job=job, conversation=job, turn=0, finish_reason="error", finished_at=1.0,
            error=Failure(code=code, message="It broke."), metadata={"camera": "yard"} if job == foreign else {},
        ))
    assert archiver.step(5) == 3
    found = {caption.job: caption for caption in archive.search()}
    codes = {job: None if found[job].error is None else found[job].error["code"] for job in found}
    assert codes == {answered: None, failed: "internal", foreign: "too_long"}
    assert all(len(found[job].media) == 1 and archive.thumbnail(found[job].id) for job in (answered, failed))
    assert found[foreign].camera == "yard" and found[failed].question == "What moves?"
    held = connection.hkeys(keys.clip(found[failed].media[0]["blob"]))
    assert sorted(held) == [b"data", f"job:{failed}".encode()]  # for a retry
    assert len(archive.search(failed=True)) == 2


def test_without_a_reader_nothing_is_kept_for_one(client: Client, connection: redis.Redis, answerer: Answerer) -> None:
    answerer.answer(client.submit(video()).job, "Yes.")
    assert not connection.exists(keys.RESULTS) and not list(connection.scan_iter(keys.clip("*")))


@pytest.mark.parametrize("setting", ["results_stream", "max_blob_bytes"])
def test_a_slow_archive_takes_no_room_from_jobs(
    setting: str, client: Client, connection: redis.Redis, archive: Archive, archiver: Archiver
) -> None:
    """No clip is held for it while clips take half of their room, and no result with `results_stream` at 0."""
    prepared = client.submit(video()).job
    most = 2 * int(connection.get(keys.CLIP_BYTES)) if setting == "max_blob_bytes" else 0
    store = JobStore(connection, connection, TTLS.model_copy(update={setting: most}), "test")
    claim = take(store, connection, prepared)
    result = Result(job=prepared, conversation=prepared, turn=0, text="Yes.", finish_reason="stop", finished_at=1.0)
    assert store.finish(prepared, claim.execution, result)
    assert not list(connection.scan_iter(keys.clip("*"))) and int(connection.get(keys.CLIP_BYTES)) == 0
    assert archiver.step(0.001) == (setting == "max_blob_bytes")
    assert [archive.thumbnail(caption.id) for caption in archive.search()] == [None] * len(archive.search())


def publish(connection: redis.Redis, numbers: range, finished: float = 1.0) -> None:
    with connection.pipeline(transaction=False) as pipeline:
        for number in numbers:
            result = Result(job=f"{number:032x}", conversation="c", turn=0, text=f"number {number}",
                            finish_reason="stop", finished_at=finished, metadata={"camera": "yard"})
            pipeline.xadd(keys.RESULTS, {"job": result.job, "result": encode(result)})
        pipeline.execute()


@pytest.mark.parametrize(("given", "time"), [
    (5.5, 5.5), ("1970-01-01T00:00:07+00:00", 7), (1000 + 86_399, 1000 + 86_399),
    (1000 + 86_401, None), (253402300799.99997, None), ("9999-12-31T23:59:59Z", None), (-5, None), (True, None),
    ("soon", None), ([], None), (1e300, None), (2**63, None), (None, None),
])
def test_times_that_a_job_may_state(given: object, time: float | None) -> None:
    """A time in the future would keep a caption at the top."""
    result = Result(
        job="x", conversation="x", turn=0, finish_reason="stop", finished_at=1000.0, metadata={"time": given},
    )
    entry = entry_of(EndedJob(Position(), result, None, ()), {})
    assert entry.caption.time == (1000.0 if time is None else time)


def test_what_other_programs_wrote_loses_no_other_result(
    connection: redis.Redis, archive: Archive, archiver: Archiver, client: Client, answerer: Answerer
) -> None:
    publish(connection, range(1))
    for fields in ({"turn": 2**64 - 1}, {"metadata": {"camera": "x" * 100_000, "time": 2**64 - 1}},
                   {"timings": {"end_to_end": 1e308}}):
        result = Result.model_validate({"job": f"odd-{fields}"[:40], "conversation": "c", "turn": 0, "finished_at": 9.0,
                                        "finish_reason": "stop", **fields})
        connection.xadd(keys.RESULTS, {"job": result.job, "result": encode(result)})
    odd = client.submit(video()).job
    answerer.claim(odd)
    answerer.finish(odd, "its clip is replaced")
    (clip,) = connection.scan_iter(keys.clip("*"))
    connection.delete(clip)
    connection.lpush(clip, "no hash")
    publish(connection, range(1, 3))
    while archiver.step(0.001):
        pass
    assert len(archive.search()) == 7 and max(len(caption.camera) for caption in archive.search()) == 200


def test_results_that_the_server_has_removed_are_counted(connection: redis.Redis) -> None:
    reader = ResultsReader(connection, Position())
    assert reader.read(0.001) == []
    publish(connection, range(30))
    assert len(reader.read(1, most=10)) == 10 and reader.lost == 0
    connection.xtrim(keys.RESULTS, maxlen=5, approximate=False)
    assert [ended.result.text for ended in reader.read(1)] == [f"number {number}" for number in range(25, 30)]
    assert reader.lost == 15
    publish(connection, range(30, 40))
    assert len(reader.read(1)) == 10 and reader.lost == 15


def test_entries_that_are_no_results_are_left_out(
    connection: redis.Redis, archive: Archive, archiver: Archiver
) -> None:
    for fields in ({"job": "x"}, {"result": b"\xff"}, {"job": b"\xff\xfe", "result": b""}):
        connection.xadd(keys.RESULTS, fields)
    publish(connection, range(1))
    assert archiver.step(5) == 1 and len(archive.search()) == 1
    assert archive.position.count == connection.xinfo_stream(keys.RESULTS)["entries-added"]


def test_a_server_that_has_lost_its_data_is_read_from_its_start(
    connection: redis.Redis, archive: Archive, archiver: Archiver
) -> None:
    publish(connection, range(5))
    assert archiver.step(5) == 5
    connection.flushdb()
    assert archiver.step(0.001) == 0  # creates the stream
    publish(connection, range(3, 8))
    assert archiver.step(5) == 3 and len(archive.search()) == 8
    connection.delete(keys.RESULTS)  # and a stream of an earlier date
    connection.xadd(keys.RESULTS, {"job": "old", "result": b""}, id="5-5")
    assert archiver.step(0.001) == 0 and archive.position.entry == "5-5"


def test_a_file_that_is_replaced_loses_no_result(connection: redis.Redis, archive: Archive, archiver: Archiver) -> None:
    publish(connection, range(5))
    assert archiver.step(5) == 5
    archive.path.rename(archive.path.with_name("old.db"))
    publish(connection, range(5, 10))
    with pytest.raises(SailqError):
        archiver.step(5)
    archive.path.touch()
    with pytest.raises(SailqError):
        archiver.step(5)
    archive.path.with_name("old.db").rename(archive.path)
    assert archiver.step(5) == 5


def test_a_full_disk_loses_no_result(connection: redis.Redis, archive: Archive, archiver: Archiver) -> None:
    """SQLite has a limit of its own, which fails as a full disk does."""
    publish(connection, range(40))
    assert archiver.step(5) == 40
    (pages,) = archive._run("PRAGMA page_count")[0]
    archive._run(f"PRAGMA max_page_count = {pages}")
    publish(connection, range(40, 400))
    stop = threading.Event()
    running = threading.Thread(target=archiver.run, args=[stop])
    running.start()
    try:
        with Archive(archive.path) as other:
            until(lambda: archiver.failing)
            assert len(other.search(limit=500)) < 400
            archive._run("PRAGMA max_page_count = 100000")
            until(lambda: len(other.search(limit=500)) == 400)
    finally:
        stop.set()
        running.join()


@pytest.mark.parametrize("command", [["archive", "--file"], ["gateway", "--port", "0", "--archive"]])
def test_one_process_archives_to_a_file(command: list[str], archive: Archive, redis_url: str) -> None:
    with closing(WriterLock(archive.path)):
        refused(invoke(*command, archive.path, url=redis_url), "bad_request", archive.path)


@pytest.mark.proof
def test_kill_the_archive_20_times_in_10_000_results_and_restart_the_server(folder: Path, tmp_path: Path) -> None:
    file, random_ = tmp_path / "captions.db", random.Random(5)
    processes: list[subprocess.Popen[str]] = []
    socket, data = folder / "server.sock", folder / "data"

    def stored() -> int:
        with Archive(file) as archive:
            return archive.position.count

    def restart() -> None:
        processes.append(start("archive", "--file", file, url=f"unix://{socket}"))

    Archive(file, create=True).close()
    kills = 0
    try:
        for first in range(0, 10_000, 2_500):
            with embedded_server(unix=socket, data=data) as server, connect(server.url) as connection:
                if first == 0:
                    ResultsReader(connection, Position()).read(0.001)
                    restart()
                writing = threading.Thread(target=lambda: [  # noqa: B023
                    publish(connection, range(at, at + 50)) for at in range(first, first + 2_500, 50)  # noqa: B023
                ])
                writing.start()
                for _ in range(5):
                    aim = min(first + 2_400, stored() + random_.randrange(1, 400))
                    until(lambda: stored() >= aim)  # noqa: B023
                    processes[-1].send_signal(signal.SIGKILL)
                    processes[-1].wait()
                    kills += 1
                    restart()
                writing.join()
                until(lambda: stored() >= first + 2_500 + 1)  # noqa: B023
            # The server has ended while the archive runs, and comes back for the next round.
        processes[-1].send_signal(signal.SIGTERM)
        assert processes[-1].wait(30) == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with Archive(file) as archive:
        texts = [caption.text for caption in archive.search(limit=20_000)]
    print(f"\nfigure: the archive killed {kills} times and its server restarted 3 times in 10,000 results: "
          f"{len(texts)} stored, {len(set(texts))} different")
    assert kills == 20 and sorted(texts) == sorted(f"number {number}" for number in range(10_000))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_commands_find_export_and_delete(
    connection: redis.Redis, archive: Archive, archiver: Archiver, tmp_path: Path
) -> None:
    publish(connection, range(600))
    while archiver.step(0.001):
        pass
    found = invoke("search", "number 7", "--file", archive.path)
    assert found.returncode == 0 and found.stdout.splitlines()[0].endswith("number 7")
    out = tmp_path / "all.jsonl"
    assert invoke("archive", "export", "--file", archive.path, "--out", out).returncode == 0
    assert sorted(row["text"] for row in rows(out)) == sorted(f"number {number}" for number in range(600))
    shown = invoke("archive", "export", "--file", archive.path)
    assert shown.stdout == out.read_text()
    refused(invoke("archive", "export", "--file", archive.path, "--out", out, "--since", "1w"), "bad_request", "1w")
    assert len(rows(out)) == 600
    for name in (archive.path, f"{archive.path}-wal", archive.path.parent / "." / archive.path.name):
        refused(invoke("archive", "export", "--file", archive.path, "--out", name), "bad_request", "--out")
    refused(invoke("archive", "delete", "--file", archive.path, "--camera", ""), "bad_request", "--camera")
    assert len(archive.search(limit=1000)) == 600
    assert invoke("search", "--file", archive.path, "--camera", "\udcff").returncode == 0
    deleted = invoke("archive", "delete", "--file", archive.path, "--camera", "yard")
    assert deleted.returncode == 0 and archive.search() == []


@pytest.mark.parametrize("arguments", [
    ["archive"], ["archive", "export", "--file", "/nowhere/x.db"], ["search", "x", "--file", "/nowhere/x.db"],
    ["archive", "--file", "/nowhere/x.db"], ["archive", "--file", "{}", "export"],
    ["search", "--file", "{}", "--since", "soon"], ["search", "--file", "{other}"], ["archive", "--file", "{other}"],
])
def test_usage_errors(arguments: list[str], archive: Archive, redis_url: str) -> None:
    other = archive.path.with_name("other.db")
    with closing(sqlite3.connect(other)) as database:
        database.execute("PRAGMA user_version = 1")
        database.execute("CREATE TABLE mine (x)")
    named = {"{}": str(archive.path), "{other}": str(other)}
    refused(invoke(*(named.get(word, word) for word in arguments), url=redis_url), "bad_request")
