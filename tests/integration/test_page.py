"""The page of a gateway with an archive, as a browser's requests see it."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import redis
from answering import TTLS, take
from gateways import gateway_thread, key_file

from sailq.producer.archive.store import Archive
from sailq.producer.client import Client
from sailq.producer.gateway.page import texts
from sailq.producer.gateway.page.asking import FileQuestion
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.producer.samples import write_samples
from sailq.shared import keys
from sailq.shared.connection import connect
from sailq.shared.jobs import Failure, Result
from sailq.worker.queue.job_store import JobStore

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\u202eevil\u202c", "{{ 7 * 7 }}", "a\0b",
    "x" * 1_000_000,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captions.db"


@pytest.fixture
def browser(redis_url: str, connection: redis.Redis, file: Path) -> Iterator[httpx.Client]:
    """Requests to a gateway without keys, whose archive reads the stream."""
    with gateway_thread(redis_url, archive=file) as url, httpx.Client(base_url=url, timeout=30) as browser:
        until_followed(connection)
        yield browser


def until_followed(connection: redis.Redis) -> None:
    """Waits until the archive has created the stream."""
    done = threading.Event()
    while not connection.exists(keys.RESULTS):
        assert not done.wait(0.01)


def end(client: Client, text: str, camera: str = "gate", frames: int = 4, error: str = "") -> str:
    """Submits a clip and ends its job as a worker does."""
    pictures = list(np.random.default_rng(1).integers(0, 256, (frames, 56, 84, 3), np.uint8))
    content = [{"type": "video", "video": pictures}, {"type": "text", "text": "What <b>moves</b>?"}]
    job = client.submit([{"role": "user", "content": content}]).job
    store = JobStore(client.connection, client.connection, TTLS, "test")
    claim = take(store, client.connection, job)
    assert store.finish(job, claim.execution, Result(
        job=job, conversation=job, turn=0, text=text, finished_at=time.time(), metadata={"camera": camera},
        finish_reason="error" if error else "stop", error=Failure(code="internal", message=error) if error else None,
    ))
    return job


def archived(file: Path, count: int) -> None:
    """Waits until the archive has so many captions."""
    tick = threading.Event()
    with Archive(file) as archive:
        while len(archive.search(limit=count)) < count:
            tick.wait(0.01)


def test_captions_are_shown_found_and_opened(browser: httpx.Client, client: Client, file: Path) -> None:
    for number in range(70):
        end(client, f"number {number}", camera=["gate", "yard"][number % 2], error="It broke." if number == 7 else "")
    archived(file, 70)
    page = browser.get("/")
    assert page.status_code == 200 and len(re.findall('<li class="card', page.text)) == 60
    older = re.search('id="older" href="([^"]+)"', page.text)
    assert older and len(re.findall('<li class="card', browser.get(older[1].replace("&amp;", "&")).text)) == 10
    found = browser.get("/", params={"text": "number 12"}).text
    (number,) = re.findall(r'data-id="(\d+)"', found)
    assert len(re.findall("data-id", browser.get("/", params={"camera": "yard"}).text)) == 35
    assert "It broke." in browser.get("/", params={"failed": "1", "since": "1h"}).text
    assert browser.get(f"/page/thumbnails/{number}").headers["content-type"] == "image/jpeg"
    clip = browser.get(f"/page/captions/{number}").text
    frames = re.findall(r'<img src="(/page/captions/[^"]+)"', clip)
    assert len(frames) == 4 and "What &lt;b&gt;moves&lt;/b&gt;?" in clip
    assert all(browser.get(frame).content[:2] == b"\xff\xd8" for frame in frames)


@pytest.mark.parametrize("path", [
    "/page/captions/1", "/page/captions/99999999999999999999", "/page/thumbnails/1", "/page/captions/1/frames/0/0",
    "/page/static/nothing.js", "/page/static/..%2f..%2fpage.py", "/?before=-1", "/?before=x", "/?since=soon",
])
def test_what_is_not_there(path: str, browser: httpx.Client) -> None:
    assert browser.get(path).status_code in {400, 404}


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_texts_are_shown_as_text(number: int, browser: httpx.Client, client: Client, file: Path) -> None:
    text = HOSTILE[number]
    end(client, text, camera=text[:200])
    archived(file, 1)
    (name,) = re.findall(r'data-id="(\d+)"', browser.get("/").text)
    views = [("/", {}), (f"/page/captions/{name}", {}), ("/", {"camera": text[:200]}), ("/", {"text": text[:200]})]
    for path, asked in views:
        page = browser.get(path, params=asked)
        assert page.status_code == 200 and "<script>alert" not in page.text and "<img src=x" not in page.text
        assert text[:600] in unescape(page.text) or "text" in asked
        assert len(re.findall("<script", page.text)) == 1


def test_every_response_of_the_page_forbids_foreign_content(browser: httpx.Client) -> None:
    for path in ("/", "/page/login", "/page/static/page.js", "/page/static/page.css"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    page = browser.get("/").text
    assert not re.findall(r'(?:src|href)="(?!/)(?!#)', page) and not re.findall(r'\son\w+=|style=', page)


def test_new_captions_are_sent_as_they_are_stored(browser: httpx.Client, client: Client) -> None:
    with browser.stream("GET", "/page/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "retry: 2000"
        job = end(client, "A red <ball>.")
        while not (line := next(lines)).startswith("data: "):
            pass
    caption = json.loads(line.removeprefix("data: "))
    assert caption["camera"] == "gate" and not caption["failed"]
    assert "A red &lt;ball&gt;." in caption["html"]["en"] and job


def test_a_gateway_with_open_pages_stops(redis_url: str, file: Path) -> None:
    """Its open streams end, so that it does not wait for them."""
    with gateway_thread(redis_url, archive=file) as url, httpx.Client(base_url=url, timeout=60) as browser:
        streams = [browser.stream("GET", "/page/events") for _ in range(5)]
        opened = [stream.__enter__() for stream in streams]
        assert [next(one.iter_raw()) for one in opened] == [b"retry: 2000\n\n"] * 5
    for stream in streams:
        stream.__exit__(None, None, None)


def test_only_keys_that_may_see_the_page_log_in(redis_url: str, file: Path, tmp_path: Path) -> None:
    known = key_file(tmp_path / "keys.json", boss={"page": True}, camera={})
    with gateway_thread(redis_url, known, archive=file) as url, httpx.Client(base_url=url) as browser:
        for path in ("/", "/page/captions/1"):
            assert browser.get(path).headers["location"] == "/page/login"
        for path in ("/page/events", "/page/thumbnails/1", "/page/captions/1/frames/0/0"):
            assert browser.get(path).status_code in {303, 401}
        for key in ("sk-camera", "sk-nobody", "", "sk-boss x"):
            refused = browser.post("/page/login", data={"key": key})
            assert refused.status_code in {400, 403} and not browser.cookies
        logged_in = browser.post("/page/login", data={"key": "sk-boss"})
        assert logged_in.status_code == 303 and "httponly" in logged_in.headers["set-cookie"].lower()
        page = browser.get("/")
        assert page.status_code == 200 and "boss" in page.text
        # The page's cookie opens no other route, and a form of another site does nothing.
        assert browser.get("/v1/models").status_code == 401
        assert browser.post("/page/logout", data={"token": "x"}).status_code == 403
        forged = dict(browser.cookies)
        name, value = next(iter(forged.items()))
        for wrong in (value[:-1] + ("0" if value[-1] != "0" else "1"), value.replace(".", "", 1), "..", "é"):
            answer = httpx.get(f"{url}/", headers={"Cookie": f"{name}={wrong}".encode()})
            assert answer.status_code == 303
        (token,) = set(re.findall('name="token" value="([^"]+)"', page.text))
        copied = f"{name}={value}".encode()
        assert httpx.get(f"{url}/", headers={"Cookie": copied}).status_code == 200
        assert browser.post("/page/logout", data={"token": token}).status_code == 303
        assert httpx.get(f"{url}/", headers={"Cookie": copied}).status_code == 303
        assert browser.get("/").status_code == 303
        browser.post("/page/login", data={"key": "sk-boss"})
        key_file(known, camera={"page": True})
        assert browser.get("/").status_code == 303  # its key is gone


@pytest.mark.parametrize(("accepted", "shown"), [
    ("zh-CN,zh;q=0.9,en;q=0.8", "搜索"), ("en-US,zh;q=0.5", "Search"), ("fr", "Search"), ("", "Search"),
    ("fr,zh", "搜索"),
])
def test_the_page_speaks_english_and_chinese(accepted: str, shown: str, browser: httpx.Client) -> None:
    assert f">{shown}</button>" in browser.get("/", headers={"Accept-Language": accepted}).text


@pytest.fixture
def asked_page(served_url: str, file: Path) -> Iterator[httpx.Client]:
    """A gateway with keys and a real worker. Its client has logged in."""
    known = key_file(file.with_name("keys.json"), boss={"page": True, "max_queued": 2})
    with connect(served_url) as connection:
        connection.delete(keys.RESULTS)
    with gateway_thread(served_url, known, archive=file) as url, httpx.Client(base_url=url, timeout=60) as browser:
        assert browser.post("/page/login", data={"key": "sk-boss"}).status_code == 303
        yield browser


def token(browser: httpx.Client) -> dict[str, str]:
    (found,) = set(re.findall('data-token="([^"]+)"', browser.get("/").text))
    return {"X-Sailq-Token": found}


def answer(response: httpx.Response) -> str:
    chunks = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in json.loads(chunk)["choices"])


def test_questions_about_a_clip_and_about_a_file(asked_page: httpx.Client, file: Path, tmp_path: Path) -> None:
    sample = next(one for one in write_samples(3, 5, tmp_path) if one["task"] == "video")
    clip = (tmp_path / sample["messages"][0]["content"][0]["video"]).read_bytes()
    medium = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    question = next(part["text"] for part in sample["messages"][0]["content"] if part["type"] == "text")
    body = {"model": "sailq-tiny", "question": question, "medium": medium, "type": "video"}
    first = asked_page.post("/page/ask", json=body, headers=token(asked_page))
    assert first.status_code == 200 and answer(first) == sample["answer"]
    archived(file, 1)
    with Archive(file) as archive:
        (caption,) = archive.search()
    url = f"/page/captions/{caption.id}/ask"
    again = asked_page.post(url, json={}, headers=token(asked_page))
    assert answer(again) == sample["answer"]
    further = {"question": "What colour is it?", "earlier": [{"question": "Is it moving?", "answer": "Yes."}]}
    assert answer(asked_page.post(url, json=further, headers=token(asked_page)))
    archived(file, 3)
    with Archive(file) as archive:
        assert {medium["blob"] for one in archive.search() for medium in one.media} == {caption.media[0]["blob"]}


@pytest.mark.parametrize(("body", "status"), [
    ({"model": "sailq-tiny", "question": ""}, 400), ({"model": "sailq-tiny"}, 400), ([], 400), ({"x": 1}, 400),
    ({"model": "nobody", "question": "Hi"}, 404), ({"model": "a b", "question": "Hi"}, 404),
    ({"model": "sailq-tiny", "question": "Hi", "medium": "data:image/png;base64,AAAA"}, 422),
    ({"model": "sailq-tiny", "question": "Hi", "medium": "http://127.0.0.1/a.png"}, 400),
    ({"model": "sailq-tiny", "question": "Hi", "medium": "/etc/passwd"}, 400),
    ({"model": "sailq-tiny", "question": "Hi", "medium": "file:///etc/passwd"}, 400),
    ({"model": "sailq-tiny", "question": "word " * 9000}, 400),
])
def test_questions_that_cannot_be_asked(body: object, status: int, asked_page: httpx.Client) -> None:
    refused = asked_page.post("/page/ask", json=body, headers=token(asked_page))
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]["message"]


def test_other_sites_cannot_ask(asked_page: httpx.Client) -> None:
    body = {"model": "sailq-tiny", "question": "Hi"}
    assert asked_page.post("/page/ask", json=body).status_code == 403
    assert asked_page.post("/page/ask", json=body, headers={"X-Sailq-Token": "x"}).status_code == 403
    plain = {**token(asked_page), "Content-Type": "text/plain"}
    assert asked_page.post("/page/ask", content=json.dumps(body), headers=plain).status_code == 415
    stranger = httpx.post(f"{asked_page.base_url}/page/ask", json=body, headers=token(asked_page))
    assert stranger.status_code == 401


def test_the_fleet_at_a_glance(asked_page: httpx.Client) -> None:
    assert fleet(asked_page.get("/").text)[:2] == ["Boxes", "1"]
    with asked_page.stream("GET", "/page/events") as events:
        lines = events.iter_lines()
        while next(lines) != "event: fleet":
            pass
        told = json.loads(next(lines).removeprefix("data: "))
    assert re.sub("<[^>]+>", "", told["zh"]).split()[:2] == ["设备", "1"]


def fleet(page: str) -> list[str]:
    """The words of the line about the fleet."""
    return re.sub("<[^>]+>", "", page.partition('id="fleet"')[2].partition(">")[2].partition("</p>")[0]).split()


def test_a_fleet_without_boxes(browser: httpx.Client) -> None:
    assert fleet(browser.get("/").text) == ["No", "worker", "is", "up."]
    assert fleet(browser.get("/", headers={"Accept-Language": "zh"}).text) == ["没有工作进程在运行。"]


def test_each_text_of_the_page_has_a_chinese_one() -> None:
    folder = Path(texts.__file__).with_name("templates")
    used = {text for file in folder.iterdir() for text in re.findall(r"""t\(["']([^"']+)["']\)""", file.read_text())}
    used |= {label for label in re.findall(r'\("([A-Z][^"]+)", caption', (folder / "caption.html").read_text())}
    used |= {label for label in re.findall(r'"((?:Any|Last) \w+)"', (folder / "captions.html").read_text())}
    problems = {text for text in texts.CHINESE if text.endswith(".")} - used
    assert used | problems == {*texts.CHINESE} and len(problems) == 4


@pytest.mark.parametrize("path", ["/page/captions/1", "/?since=soon", "/?before=x", "/page/nothing"])
def test_a_person_sees_errors_as_a_page(path: str, browser: httpx.Client) -> None:
    shown = browser.get(path, headers={"Accept": "text/html,*/*"})
    assert shown.status_code in {400, 404} and shown.headers["content-type"].startswith("text/html")
    assert 'role="alert"' in shown.text and 'href="/"' in shown.text
    assert browser.get(path).headers["content-type"] == "application/json"


def test_odd_but_harmless_requests(browser: httpx.Client) -> None:
    assert browser.head("/").status_code == 200
    for path in ("/?before=&since=&text=", "/?failed=0", "/?camera=" + "x" * 5000, "/?text=%ff%00", "/?text=a&text=b"):
        assert browser.get(path).status_code == 200
    shown = browser.get("/?camera=gone").text
    assert '<option value="gone" selected>' in shown


def test_the_page_does_not_wait_for_a_server_that_hangs(folder: Path, tmp_path: Path) -> None:
    server = ManagedProcess("server", sailq_command("server", "--unix", str(folder / "s")), tmp_path / "server.log")
    url = f"unix://{folder / 's'}"
    try:
        server.wait_until((folder / "s").exists, 60)
        with gateway_thread(url, archive=tmp_path / "captions.db") as page, httpx.Client(base_url=page) as browser:
            assert browser.get("/").status_code == 200
            stopped = psutil.Process(server.pid).children(recursive=True)
            for process in stopped:
                process.suspend()
            began = time.monotonic()
            assert browser.get("/", timeout=10).status_code == 200 and time.monotonic() - began < 5
            for process in stopped:
                process.resume()
    finally:
        server.stop()


@pytest.mark.parametrize(("head", "kind"), [
    (b"\xff\xd8\xff\xe0", "image"), (b"\x89PNG\r\n", "image"), (b"RIFF1234WEBPVP8", "image"),
    (b"\0\0\0\x18ftypheic", "image"), (b"\0\0\0\x18ftypisom", "video"), (b"G@\x11\x10", "video"),
    (b"RIFF1234AVI ", "video"), (b"", "video"),
])
def test_files_whose_type_the_browser_does_not_know(head: bytes, kind: str) -> None:
    url = "data:application/octet-stream;base64," + base64.b64encode(head + bytes(100)).decode()
    (message,) = FileQuestion(model="m", question="What?", medium=url).request().messages
    assert message["content"][0]["type"] == f"{kind}_url"
