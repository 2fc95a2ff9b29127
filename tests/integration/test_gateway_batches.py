"""OpenAI's Files and Batches, with the client of the `openai` package."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import gateways
import httpx
import openai
import pytest
import redis
from farm import NullWorker
from gateways import Gateway, gateway, gateway_thread, key_file
from openai.types import Batch

from sailq.producer.captioning import window
from sailq.producer.client import Client, JobHandle
from sailq.producer.gateway import batch_runner, batches, files
from sailq.producer.gateway.folder import Folder
from sailq.producer.openai_api import batch_run

pytestmark = pytest.mark.proof

ENDPOINT: Any = "/v1/chat/completions"
KILLS, LINES = 5, 300
SECONDS = 600.0
"""Within this a batch makes progress, however busy the machine is."""
KEY = "Bearer sk-anna"


def line(custom_id: str, content: Any = "Hello", model: str = "sailq-tiny", **body: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 2, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode() + b"\n"


def client_of(url: str, key: str = "anna") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=f"sk-{key}", max_retries=0)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "_SCAN_SECONDS", 0.1)
    monkeypatch.setattr(batch_runner, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(batch_runner, "_COUNT_SECONDS", 0.05)
    monkeypatch.setattr(window, "_IDLE_SECONDS", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "gateway"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return key_file(tmp_path / "keys.json", anna={}, bob={}, carl={"priority": "high", "max_queued": 2})


@pytest.fixture
def threads_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads read media: a child takes a second to start."""
    monkeypatch.setattr(batch_run, "Readers", lambda **options: None)


@pytest.fixture
def url(redis_url: str, folder: Path, keys: Path, threads_read: None) -> Iterator[str]:
    with gateway_thread(redis_url, keys, files=folder) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with closing(client_of(url)) as client:
        yield client


def begin(client: openai.OpenAI, *lines: bytes, **options: Any) -> Batch:
    file = client.files.create(file=("in.jsonl", b"".join(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **options)


def until(client: openai.OpenAI, batch: Batch, holds: Callable[[Batch], object]) -> Batch:
    end = time.monotonic() + SECONDS
    while not holds(now := client.batches.retrieve(batch.id)):
        assert time.monotonic() < end and now.status not in batches.FINAL, now
        time.sleep(0.02)
    return now


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    return until(client, batch, lambda now: now.status in batches.FINAL)


def rows(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [] if file is None else [json.loads(row) for row in client.files.content(file).text.splitlines()]


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_a_batch_with_answers_and_errors(served_url: str, folder: Path, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    bad = [{"type": "image_url", "image_url": {"url": str(tmp_path / "secret.png")}}]
    far = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]
    with gateway_thread(served_url, keys, files=folder) as url, closing(client_of(url)) as client:
        batch = begin(client, line("1"), line("2", n=3), line("3"), line("4", bad), line("5", far),
                      metadata={"night": "5"})
        assert (batch.object, batch.status, batch.completion_window) == ("batch", "validating", "24h")
        done = ended(client, batch)
        assert (done.status, counts(done), done.metadata) == ("completed", (5, 2, 3), {"night": "5"})
        assert done.created_at <= (done.in_progress_at or 0) <= (done.finalizing_at or 0) <= (done.completed_at or 0)
        answers, errors = rows(client, done.output_file_id), rows(client, done.error_file_id)
        assert [row["custom_id"] for row in answers] == ["1", "3"]
        assert all(row["response"]["body"]["object"] == "chat.completion" for row in answers)
        assert [(row["custom_id"], row["response"]["status_code"]) for row in errors] == [
            ("2", 400), ("4", 400), ("5", 400)]
        assert done.output_file_id and done.error_file_id
        output = client.files.retrieve(done.output_file_id)
        assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
        assert client.files.delete(output.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(output.id)
    assert sorted(path.suffix for path in (folder / "batches").iterdir()) == [".json"]


def test_a_file_that_is_not_a_batch(client: openai.OpenAI) -> None:
    done = ended(client, begin(client, line("1"), b"{\n", line("1")))
    assert done.status == "failed" and done.errors and done.errors.data
    assert [(error.line, error.code) for error in done.errors.data] == [
        (2, "invalid_json_line"), (3, "duplicate_custom_id")]
    assert done.output_file_id is done.error_file_id is None and done.failed_at


def test_a_batch_whose_input_was_deleted(redis_url: str, folder: Path, keys: Path) -> None:
    with gateway_thread(redis_url, keys, files=folder) as url, closing(client_of(url)) as client:
        batches_ = batches.BatchStore(folder)
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id="file-1", endpoint=ENDPOINT, completion_window="24h")
        batch = batches_.create("anna", f"file-{'0' * 32}", ENDPOINT)
        done = ended(client, client.batches.retrieve(batch.id))
    assert done.errors and done.errors.data and done.errors.data[0].code == "input_file_not_found"


def test_a_batch_goes_on_after_an_error_of_the_disk(
    client: openai.OpenAI, folder: Path, start_null: Callable[..., NullWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_null()
    monkeypatch.setattr(batch_runner, "_AGAIN_SECONDS", 0.1)
    put, failures = files.FileStore.put, [errno.EIO, errno.ENOSPC]

    def fail(self: files.FileStore, id: str, owner: str, filename: str, *rest: Any) -> files.StoredFile:
        if failures and "error" in filename:  # the output was written
            raise OSError(failures[-1], os.strerror(failures.pop()))
        return put(self, id, owner, filename, *rest)

    monkeypatch.setattr(files.FileStore, "put", fail)
    done = ended(client, begin(client, line("1"), line("2", n=2)))
    assert (done.status, counts(done), failures) == ("completed", (2, 1, 1), [])
    assert sorted(file.id for file in client.files.list(purpose="batch_output")) == sorted(
        filter(None, [done.output_file_id, done.error_file_id]))


def test_a_cancelled_batch_keeps_its_answers(client: openai.OpenAI, start_null: Callable[..., NullWorker]) -> None:
    start_null("--slots", "1", "--decode-ms", "20")
    batch = begin(client, *[line(str(number)) for number in range(2000)])
    until(client, batch, lambda now: counts(now)[1] > 0)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch)
    total, completed, failed = counts(done)
    assert done.status == "cancelled" and done.cancelling_at and done.cancelled_at
    assert total == 2000 > completed > 0 == failed and len(rows(client, done.output_file_id)) == completed
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_cancelled_batch_that_waits_for_others_or_for_a_worker(client: openai.OpenAI) -> None:
    waiting = [begin(client, line("1")) for _ in range(batch_runner.AT_ONCE + 1)]
    for batch in reversed(waiting):
        client.batches.cancel(batch.id)
    assert [ended(client, batch).status for batch in waiting] == ["cancelled"] * len(waiting)


def test_a_batch_that_expires(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = begin(client, line("1"), line("2", n=2), line("3"))
    until(client, batch, lambda now: counts(now)[2] == 1)
    monkeypatch.setattr(batches, "WINDOW_SECONDS", 0)
    done = ended(client, batch)
    assert done.status == "expired" and done.expired_at and done.output_file_id is None and counts(done) == (3, 0, 3)
    found = [(row["custom_id"], row["error"] and row["error"]["code"]) for row in rows(client, done.error_file_id)]
    assert found == [("1", "batch_expired"), ("2", None), ("3", "batch_expired")]


def test_what_a_key_allows(
    url: str, client: openai.OpenAI, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without high priority may not ask for it, and one with a bound has no more jobs at a time."""
    submitted = []
    submit = Client.submit_prepared

    def note(self: Client, *given: Any, **asked: Any) -> JobHandle:
        handle = submit(self, *given, **asked)
        submitted.append((asked.get("priority"), handle.conversation))
        return handle

    monkeypatch.setattr(Client, "submit_prepared", note)
    batch = begin(client, line("1", priority="high"), line("2", conversation="c"))
    until(client, batch, lambda now: counts(now)[2] == 1 and submitted)
    assert submitted == [("normal", "anna.c")]
    ((error,),) = [rows(client, ended(client, client.batches.cancel(batch.id)).error_file_id)]
    assert (error["custom_id"], error["response"]["status_code"]) == ("1", 403)
    with closing(client_of(url, "carl")) as other:
        batch = begin(other, *[line(str(number)) for number in range(10)])
        until(other, batch, lambda now: len(submitted) == 3)
        until(other, other.batches.cancel(batch.id), lambda now: now.status == "cancelled")
    assert [priority for priority, _ in submitted] == ["normal", "high", "high"]


def test_without_a_key(url: str) -> None:
    with closing(client_of(url, "nobody")) as other:
        for call in (other.files.list, other.batches.list, lambda: begin(other, b"x")):
            with pytest.raises(openai.AuthenticationError):
                call()


def test_pages_of_lists(client: openai.OpenAI) -> None:
    files = [client.files.create(file=(f"{number}.jsonl", b"x"), purpose="batch").id for number in range(5)]
    assert [file.id for file in client.files.list(order="asc")] == files
    assert [file.id for file in client.files.list(limit=2)] == files[::-1]  # the client fetches all three pages
    page = client.files.list(limit=2, after=files[3])
    assert [file.id for file in page.data] == files[1:3][::-1] and page.has_more
    assert client.files.list(purpose="user_data").data == []
    made = [begin(client, b"x").id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]


def test_what_another_key_has_does_not_exist(url: str, client: openai.OpenAI) -> None:
    batch = begin(client, b"x")
    file, name = batch.input_file_id, batch.id
    with closing(client_of(url, "bob")) as other:
        assert other.files.list().data == [] and other.batches.list().data == []
        for call in (
            lambda: other.files.retrieve(file), lambda: other.files.content(file), lambda: other.files.delete(file),
            lambda: other.batches.retrieve(name), lambda: other.batches.cancel(name), lambda: begin_with(other, file),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
    assert client.files.content(file).read() == b"x"


def begin_with(client: openai.OpenAI, file: str) -> Batch:
    return client.batches.create(input_file_id=file, endpoint=ENDPOINT, completion_window="24h")


TRICKS = [
    "..", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fbatches", "file-%00", "file-" + "0" * 32, "%2fetc%2fpasswd",
    "file-" + "0" * 32 + ".json", "x" * 5000, "file-" + "%ff" * 32, "....//", "%5c..%5c",
]


def test_path_tricks(url: str, folder: Path) -> None:
    (folder / "files" / ("file-" + "0" * 32)).touch()  # without a record it is no file
    for method, path in (("GET", "files/ID"), ("GET", "files/ID/content"), ("DELETE", "files/ID"),
                         ("GET", "batches/ID"), ("POST", "batches/ID/cancel")):
        for trick in TRICKS:
            head = (f"{method} /v1/{path.replace('ID', trick)} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                    f"Authorization: {KEY}\r\n\r\n")
            assert status_of(url, head.encode()) in (307, 404, 405), (path, trick)


def status_of(url: str, request: bytes) -> int:
    """The status of a response to bytes that no client would send."""
    host = httpx.URL(url)
    with socket.create_connection((host.host, host.port or 80)) as connection:
        connection.sendall(request)
        return int(connection.makefile("rb").readline().split()[1])


def form(*parts: tuple[str, bytes], boundary: bytes = b"b", end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, name.encode(), data)
                    for name, data in parts) + end


FILE, PURPOSE = ('name="file"; filename="a"', b"x"), ('name="purpose"', b"batch")


UPLOADS = [
    (form(FILE, PURPOSE), 200),
    (form(PURPOSE, FILE), 200),
    (form(PURPOSE, ('name="file"; filename="../../etc/passwd"', b"x")), 200),
    (form(FILE), 400),
    (form(PURPOSE), 400),
    (form(FILE, ('name="purpose"', b"vision")), 400),
    (form(FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"3600")),
     200),
    (form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"1")), 400),
    (form(FILE, PURPOSE, FILE), 400),
    (form(FILE, ('name="purpose"', b"batch" * 1000)), 400),
    (form(FILE, PURPOSE, *[(f'name="{number}"', b"") for number in range(100)]), 400),
    (form(FILE, ("x" * 100_000, b"")), 400),
    (form(FILE, ("", b"")), 400),
    (form(FILE, PURPOSE, end=b""), 400),
    (form(FILE, PURPOSE, boundary=b"c"), 400),
    (b"", 400),
    (b"{}", 400),
    (form(('name="file"; filename="a"', b"x" * (2**20 + 1)), PURPOSE), 413),
]


def test_uploads(
    redis_url: str, keys: Path, folder: Path, threads_read: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.FileStore.__init__, "__kwdefaults__", {"max_bytes": 2**20})
    with gateway_thread(redis_url, keys, files=folder) as url:
        try_uploads(url, folder)


def try_uploads(url: str, folder: Path) -> None:
    made, headers = 0, {"Authorization": KEY, "Content-Type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=url, headers=headers) as http:
        for body, status in UPLOADS:
            done = http.post("/v1/files", content=body)
            assert done.status_code == status, (body[:200], done.text)
            if status == 200:
                made += 1
                assert done.json()["bytes"] == 1 and "/" not in done.json()["filename"]
            else:
                assert done.json()["error"]["message"]
            assert len(os.listdir(folder / "files")) == 2 * made, body[:200]


def test_a_full_folder(redis_url: str, folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "Folder", lambda path, quota: Folder(path, 50_000))
    with gateway_thread(redis_url, keys, files=folder) as url, closing(client_of(url)) as client:
        client.files.create(file=("a", b"x" * 40_000), purpose="batch")
        for call in (lambda: client.files.create(file=("a", b"x" * 10_000), purpose="batch"),
                     lambda: [begin_with(client, client.files.list().data[0].id) for _ in range(10)]):
            with pytest.raises(openai.APIStatusError) as error:
                call()
            assert error.value.status_code == 507


BODIES = [
    b"", b"[]", b"{", b"[" * 60_000, b'{"input_file_id": "x"}', b"x" * 100_000,
    b'{"input_file_id": "x", "endpoint": "/v1/embeddings", "completion_window": "24h"}',
    b'{"input_file_id": "x", "endpoint": "/v1/chat/completions", "completion_window": "1h"}',
    b'{"input_file_id": "x", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"a": 1}}',
]


def test_bodies_that_ask_for_no_batch(url: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": KEY}) as http:
        for body in BODIES:
            done = http.post("/v1/batches", content=body, headers={"Content-Type": "application/json"})
            assert done.status_code == (413 if len(body) == 100_000 else 400), (body[:200], done.text)
            assert done.json()["error"]["message"]
        assert http.post("/v1/batches", content=BODIES[-1]).status_code == 415


def test_another_gateway_goes_on_with_the_batch_of_one_that_leaves(
    redis_url: str, folder: Path, keys: Path, start_null: Callable[..., NullWorker], threads_read: None
) -> None:
    start_null("--slots", "8")
    with gateway_thread(redis_url, keys, files=folder) as second, closing(client_of(second)) as client:
        with gateway_thread(redis_url, keys, files=folder) as first, closing(client_of(first)) as leaving:
            batch = begin(leaving, *[line(str(number)) for number in range(200)])
            until(client, batch, lambda now: counts(now)[1] > 0)
        done = ended(client, batch)
        assert (done.status, counts(done)) == ("completed", (200, 200, 0))
        assert [row["custom_id"] for row in rows(client, done.output_file_id)] == [*map(str, range(200))]


def test_a_gateway_that_fetches_a_medium_for_a_batch_can_be_stopped(
    redis_url: str, folder: Path, threads_read: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the batch first, and then waits for what is still being fetched."""

    class Ends(batch_runner._Ends):
        def __init__(self, status: str | None) -> None:
            super().__init__(status)
            fetching.close()

    monkeypatch.setattr(batch_runner, "_Ends", Ends)
    with socket.create_server(("127.0.0.1", 0)) as quiet:
        host = f"127.0.0.1:{quiet.getsockname()[1]}"
        far = [{"type": "image_url", "image_url": {"url": f"http://{host}/a.png"}}]
        with gateway_thread(redis_url, files=folder, media_from=["127.0.0.0/8", host]) as url:
            with closing(client_of(url)) as client:
                batch = begin(client, line("1", far))
            fetching, _ = quiet.accept()
    stored = batches.BatchStore(folder).read(batch.id)
    assert stored is not None and stored.status == "in_progress"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 2])
def test_a_gateway_killed_in_mid_batch_5_times(
    redis_url: str, folder: Path, keys: Path, tmp_path: Path, start_null: Callable[..., NullWorker], count: int
) -> None:
    """With two gateways, the one that runs the batch is killed, and the other goes on."""
    start_null("--slots", "1", "--decode-ms", "40")
    seed = int(os.environ.get("SEED", "11"))
    chance = random.Random(seed)
    names, file = [f"request {number}" for number in range(LINES)], folder / "batches"
    before: dict[str, str] = {}
    batch: Batch | None = None
    killed = 0
    running: list[Gateway] = []
    with ExitStack() as stack:

        def start() -> Gateway:
            log = tmp_path / f"gateway-{killed}-{len(running)}.log"
            return stack.enter_context(gateway(redis_url, log, "--files", folder, "--keys", keys))

        while killed < KILLS:
            while len(running) < count:
                running.append(start())
            if batch is None:
                with closing(client_of(running[0].url)) as client:
                    batch = begin(client, *map(line, names))
            out, record = file / f"{batch.id}.rows", file / f"{batch.id}.json"
            enough, end = len(before) + 1 + chance.randrange(20), time.monotonic() + SECONDS
            while len(answered(out)) < enough:
                assert time.monotonic() < end, folder
                assert json.loads(record.read_text())["status"] != "completed"
                time.sleep(0.01)
            victim = next(one for one in running if holds(one.pid, file / f"{batch.id}.lock"))
            os.kill(victim.pid, signal.SIGKILL)
            victim.stop()
            running.remove(victim)
            killed += 1
            now = answered(out)
            assert now.items() >= before.items()  # no row is lost
            before = now
        with closing(client_of(start().url)) as client:
            assert batch is not None
            done = ended(client, batch)
            assert done.status == "completed" and counts(done) == (LINES, LINES, 0), done
            found = rows(client, done.output_file_id)
    assert [row["custom_id"] for row in found] == names
    assert {row["custom_id"]: row["response"]["request_id"] for row in found}.items() >= before.items()
    print(f"figure: {LINES} requests, {count} gateway(s), killed {KILLS} times in mid-batch (seed {seed}): "
          f"{len(found)} rows, {len(before)} of them before the last kill, none lost, none twice")


def answered(out: Path) -> dict[str, str]:
    """The job that answered each request, from the whole lines; each request has one row at most."""
    try:
        lines = out.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    found = {row["custom_id"]: row["response"]["request_id"] for row in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(link) == os.path.realpath(path) for link in links)
