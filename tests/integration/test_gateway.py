"""What a gateway does with requests: streams, disconnects, repeated requests, keys and their limits."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from answering import Answerer
from commands import invoke
from gateways import gateway, gateway_thread, key_file
from media_server import media_server
from own_server import OwnServer

from sailq.producer.gateway import middleware, routes, server, streaming
from sailq.producer.submission import Submitter
from sailq.shared import keys
from sailq.shared.codec import encode
from sailq.shared.errors import SailqError
from sailq.shared.jobs import ModelCard

MODEL = "answered"
QUEUE = keys.waiting(keys.queue(MODEL))
SECONDS = 90.0
Eventually = Callable[..., None]


@pytest.fixture(autouse=True)
def served(connection: redis.Redis) -> None:
    publish(connection)


def publish(connection: redis.Redis) -> None:
    """A model that the test answers for."""
    card = ModelCard(name=MODEL, context=512, min_pixels=784, max_pixels=78_400)
    connection.set(keys.model(MODEL), encode(card))
    connection.sadd(keys.MODELS, MODEL)


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    with gateway_thread(redis_url) as url:
        yield url


class Request:
    """A request on a thread of its own."""

    def __init__(self, url: str, body: dict[str, Any], **headers: str) -> None:
        self.lines: list[str] = []
        self.response: httpx.Response | None = None
        self._client = httpx.Client(timeout=SECONDS)
        self._thread = threading.Thread(target=self._ask, args=[url, body, headers])
        self._thread.start()

    def _ask(self, url: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        with self._client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            for line in response.iter_lines():
                self.lines.append(line)
            self.response = response

    def end(self) -> httpx.Response:
        self._thread.join(SECONDS)
        self._client.close()
        assert self.response is not None
        return self.response

    @property
    def json(self) -> Any:
        self.end()
        return json.loads("\n".join(self.lines))

    @property
    def events(self) -> list[Any]:
        """What the server has sent so far."""
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [event if event == "[DONE]" else json.loads(event) for event in data]

    @property
    def text(self) -> str:
        choices = [event["choices"] for event in self.events if event != "[DONE]" and "choices" in event]
        return "".join(one[0]["delta"].get("content", "") for one in choices if one)


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **more}


def waiting(connection: redis.Redis, eventually: Eventually, count: int = 1) -> list[str]:
    """The jobs on the queue, once there are so many."""
    eventually(lambda: connection.llen(QUEUE) == count)
    return [job.decode() for job in connection.lrange(QUEUE, 0, -1)]


def ended(connection: redis.Redis, job: str) -> bool:
    return bool(connection.exists(keys.result(job)))


@contextmanager
def open_socket(url: str) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), SECONDS) as connection:
        yield connection


def send(connection: socket.socket, asked: dict[str, Any], *headers: str) -> None:
    data = json.dumps(asked).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
            f"Content-Length: {len(data)}", *headers, "", ""]
    connection.sendall("\r\n".join(head).encode() + data)


def test_text_is_streamed_as_it_comes(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    request = Request(url, body(stream=True))
    (job,) = waiting(connection, eventually)
    answerer.claim(job)
    answerer.say(job, 0, "A red ")
    eventually(lambda: request.text == "A red ")
    answerer.say(job, 6, "star.")
    answerer.finish(job, "A red star.")
    assert request.end().status_code == 200
    assert request.text == "A red star." and request.events[-1] == "[DONE]"
    assert request.events[-2]["choices"][0]["finish_reason"] == "stop" and request.events[-2]["sailq"]["job"] == job


def test_text_that_begins_again_is_sent_once(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    request = Request(url, body(stream=True))
    (job,) = waiting(connection, eventually)
    answerer.claim(job)
    answerer.say(job, 0, "A red ")
    eventually(lambda: request.text == "A red ")
    key = keys.stream(job)
    connection.xadd(key, {"attempt": 2, "at": 0, "text": "A r"})
    connection.xadd(key, {"attempt": 2, "at": 3, "text": "ed star."})
    answerer.finish(job, "A red star.")
    request.end()
    assert request.text == "A red star."


def test_text_that_begins_again_and_differs_ends_with_an_error(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    request = Request(url, body(stream=True))
    (job,) = waiting(connection, eventually)
    answerer.claim(job)
    answerer.say(job, 0, "A red ")
    eventually(lambda: request.text == "A red ")
    answerer.finish(job, "A blue star.")
    request.end()
    assert request.text == "A red " and request.events[-2]["error"]["code"] == "restarted"


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_fails_gives_its_status(
    url: str, connection: redis.Redis, eventually: Eventually, stream: bool
) -> None:
    request = Request(url, body(stream=stream))
    (job,) = waiting(connection, eventually)
    with connect_client(connection) as client:
        client.cancel(job)
    assert request.end().status_code == 409 and request.json["error"]["code"] == "cancelled"
    assert request.end().headers["x-should-retry"] == "false"


def connect_client(connection: redis.Redis) -> Any:
    from sailq.producer.client import Client

    path, db = (connection.connection_pool.connection_kwargs[name] for name in ("path", "db"))
    return Client(f"unix://{path}?db={db}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_job(
    url: str, connection: redis.Redis, eventually: Eventually, stream: bool
) -> None:
    with open_socket(url) as link:
        send(link, body(stream=stream))
        (job,) = waiting(connection, eventually)
    eventually(lambda: ended(connection, job))
    assert not connection.llen(QUEUE)


def test_a_client_that_disconnects_in_mid_stream_cancels_its_job(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    with open_socket(url) as link:
        send(link, body(stream=True))
        (job,) = waiting(connection, eventually)
        answerer.claim(job)
        answerer.say(job, 0, "A red ")
        while b"A red" not in link.recv(65536):
            pass
    eventually(lambda: connection.hget(keys.job(job), "cancel"))


def test_a_repeated_request_gets_the_same_answer(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    with open_socket(url) as link:
        send(link, body(), "Idempotency-Key: night-7")
        (job,) = waiting(connection, eventually)
    again = Request(url, body(), **{"Idempotency-Key": "night-7", "Content-Type": "application/json"})
    answerer.answer(job, "A red star.")
    assert again.json["choices"][0]["message"]["content"] == "A red star."
    streamed = Request(url, body(stream=True), **{"Idempotency-Key": "night-7"})
    streamed.end()
    assert streamed.text == "A red star." and streamed.events[0]["id"] == again.json["id"]
    assert not connection.llen(QUEUE)


def test_an_idempotency_key_for_another_request_is_refused(
    url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually
) -> None:
    first = Request(url, body(), **{"Idempotency-Key": "k"})
    (job,) = waiting(connection, eventually)
    answerer.answer(job, "Yes.")
    assert first.end().status_code == 200
    other = Request(url, body(seed=1), **{"Idempotency-Key": "k"})
    assert other.end().status_code == 422 and other.json["error"]["code"] == "idempotency_key_reused"


def test_limits_of_keys(
    redis_url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually, tmp_path: Path
) -> None:
    file = key_file(
        tmp_path / "keys.json", slow={"rate": 0.01, "burst": 2}, few={"max_queued": 1}, first={"priority": "high"}
    )
    with gateway_thread(redis_url, file) as url:
        asked = [Request(url, body(), Authorization="Bearer sk-slow") for _ in range(2)]
        for job in waiting(connection, eventually, 2):
            answerer.answer(job, "Yes.")
        assert [one.end().status_code for one in asked] == [200, 200]
        third = Request(url, body(), Authorization="Bearer sk-slow")
        assert third.end().status_code == 429 and third.json["error"]["code"] == "rate_limit_exceeded"
        assert 90 <= int(third.end().headers["retry-after"]) <= 100

        one = Request(url, body(), Authorization="Bearer sk-few")
        (job,) = waiting(connection, eventually)
        assert Request(url, body(), Authorization="Bearer sk-few").end().status_code == 429
        answerer.answer(job, "Yes.")
        assert one.end().status_code == 200
        jobs = keys.gateway_jobs(hashlib.sha256(b"sk-few").hexdigest())
        eventually(lambda: not connection.exists(jobs))
        connection.zadd(jobs, {"of-a-gateway-that-died": 1.0})
        again = Request(url, body(), Authorization="Bearer sk-few")
        (job,) = waiting(connection, eventually)
        answerer.answer(job, "Yes.")
        assert again.end().status_code == 200

        normal = Request(url, body(), Authorization="Bearer sk-few")
        (waits,) = waiting(connection, eventually)
        urgent = Request(url, body(), Authorization="Bearer sk-first")
        assert waiting(connection, eventually, 2)[1] == waits
        for job in waiting(connection, eventually, 2):
            answerer.answer(job, "Yes.")
        assert normal.end().status_code == urgent.end().status_code == 200
        assert Request(url, body(priority="high"), Authorization="Bearer sk-few").end().status_code == 403
        shown = httpx.get(f"{url}/metrics").text
        assert 'sailq:gateway_requests_total{key="slow",path="/v1/chat/completions",status="429"} 1.0' in shown
        assert "sk-" not in shown


def test_keys_do_not_share_conversations(
    redis_url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually, tmp_path: Path
) -> None:
    with gateway_thread(redis_url, key_file(tmp_path / "keys.json", one={}, two={})) as url:
        for caller in ("one", "two"):
            request = Request(url, body(conversation="shared"), Authorization=f"Bearer sk-{caller}")
            (job,) = waiting(connection, eventually)
            answerer.answer(job, f"I know {caller}.")
            assert request.json["sailq"]["conversation"] == "shared"
        long = Request(url, body(conversation="c" * 125), Authorization="Bearer sk-one")
        assert long.end().status_code == 400 and "at most 124 characters" in long.json["error"]["message"]
        assert connection.llen(keys.turns("one.shared")) == connection.llen(keys.turns("two.shared")) == 1


def test_keys_are_read_again_when_their_file_changes(redis_url: str, tmp_path: Path) -> None:
    file = key_file(tmp_path / "keys.json", one={})

    def status(key: str) -> int:
        return httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    with gateway_thread(redis_url, file) as url:
        assert (status("sk-one"), status("sk-two")) == (200, 401)
        key_file(tmp_path / "new.json", two={}).replace(file)
        assert (status("sk-one"), status("sk-two")) == (401, 200)
        file.write_text("{")
        assert (status("sk-one"), status("sk-two")) == (401, 200)


def test_a_quiet_stream_gets_comments(
    redis_url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_QUIET_SECONDS", 0.05)
    with gateway_thread(redis_url) as url:
        request = Request(url, body(stream=True))
        (job,) = waiting(connection, eventually)
        eventually(lambda: request.lines.count(": waiting") >= 2)
        with connect_client(connection) as client:
            client.cancel(job)
        request.end()
        assert request.events[-2]["error"]["code"] == "cancelled"  # its status was sent long ago


@pytest.mark.proof
def test_slow_clients_are_sent_away(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADER_SECONDS", 1.0)
    monkeypatch.setattr(middleware, "_QUIET_SECONDS", 1.0)
    with gateway_thread(redis_url) as url:
        with open_socket(url) as link:
            link.sendall(b"GET /health HT")
            assert link.recv(100) == b""
        with open_socket(url) as link:
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
            assert link.recv(1000).startswith(b"HTTP/1.1 200")
            assert link.recv(100) == b""
        with open_socket(url) as link:
            link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert link.recv(1000).startswith(b"HTTP/1.1 408")


def test_without_keys_only_local_names_are_answered(url: str) -> None:
    hosts = {"localhost:8000": 200, "127.0.0.1": 200, "[::1]:8000": 200, "evil.example": 403, "": 403}
    for host, status in hosts.items():
        assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == status, host


def test_health_and_readiness(url: str, start_null: Callable[..., Any]) -> None:
    assert httpx.get(f"{url}/health").status_code == httpx.head(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/ready").status_code == 503
    start_null()
    assert httpx.get(f"{url}/ready").status_code == 200


def test_openapi_describes_the_chat_request(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "response_format"} <= schema["properties"].keys()
    assert httpx.get(f"{url}/docs").status_code == 200


@pytest.mark.proof
def test_a_server_that_is_away_gives_503(folder: Path) -> None:
    with gateway_thread(f"unix://{folder}/none.sock") as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=body(), timeout=SECONDS)
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/ready", timeout=SECONDS).status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_restarts_is_not_noticed(folder: Path, eventually: Eventually, stream: bool) -> None:
    with OwnServer(folder, always=True) as own:
        connection = own.start()
        publish(connection)
        with gateway_thread(own.url) as url:
            request = Request(url, body(stream=stream))
            (job,) = waiting(connection, eventually)
            own.kill()
            connection = own.start()
            answerer = Answerer(connection)
            answerer.claim(job)
            answerer.say(job, 0, "A red ")
            answerer.finish(job, "A red star.")
            assert request.end().status_code == 200
            answer = request.text if stream else request.json["choices"][0]["message"]["content"]
            assert answer == "A red star."


def test_a_client_that_disconnects_while_its_job_is_submitted_cancels_it(
    redis_url: str, connection: redis.Redis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submission is in a thread, which cannot be stopped."""
    entered, may_go, submit = threading.Event(), threading.Event(), Submitter.submit

    def late(self: Submitter, *arguments: Any, **options: Any) -> Any:
        entered.set()
        assert may_go.wait(SECONDS)
        return submit(self, *arguments, **options)

    monkeypatch.setattr(Submitter, "submit", late)
    with gateway_thread(redis_url) as url:
        with open_socket(url) as link:
            send(link, body())
            eventually(lambda: entered.is_set())
        eventually(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
        assert not connection.llen(QUEUE)
        may_go.set()
        eventually(lambda: connection.keys(keys.result("*")))
        assert not connection.llen(QUEUE)


def test_a_client_that_disconnects_while_its_media_are_fetched_has_no_job(
    redis_url: str, connection: redis.Redis, eventually: Eventually, tmp_path: Path
) -> None:
    file = key_file(tmp_path / "keys.json", few={"max_queued": 1})
    jobs = keys.gateway_jobs(hashlib.sha256(b"sk-few").hexdigest())
    with media_server(b"", 9) as media, gateway_thread(
        redis_url, file, media_from=[f"127.0.0.1:{media.port}"], media_seconds=600
    ) as url:
        shown = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{media.port}/silent"}}
        with open_socket(url) as link:
            send(link, body(messages=[{"role": "user", "content": [shown]}]), "Authorization: Bearer sk-few")
            eventually(lambda: media.seen and connection.exists(jobs))
        eventually(lambda: not connection.exists(jobs))
        assert not connection.llen(QUEUE) and not connection.keys(keys.result("*"))


def test_a_fault_of_the_gateway_gives_500(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fields: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(routes, "read_request", fails)
    with gateway_thread(redis_url) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=body())
        assert response.status_code == 500 and response.json()["error"]["code"] == "internal"
        shown = httpx.get(f"{url}/metrics").text
        assert 'sailq:gateway_requests_total{key="",path="/v1/chat/completions",status="500"} 1.0' in shown


@pytest.mark.proof
def test_https(redis_url: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    with gateway(redis_url, tmp_path / "log", "--ssl-certfile", certificate, "--ssl-keyfile", key) as running:
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert running.url.startswith("https://")
        assert httpx.get(f"{running.url}/health", verify=trusted).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--keys"),
        (["--host", "::"], "--keys"),
        (["--keys", "/nowhere/keys.json"], "No such file"),
        (["--new-key", "a b"], "A-Z"),
        (["--ssl-certfile", "x"], "together"),
        (["--media-from", "10.0.0.1/99"], "neither"),
        (["--host", "192.0.2.1", "--no-auth"], "cannot listen"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    done = invoke("gateway", *arguments)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"sha256": "x"}}', '{"a b": {}}', '{"a": {"sha256": 5}}'])
def test_keys_that_cannot_be_read_are_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text.replace("x", "sk-secret"))
    done = invoke("gateway", "--keys", str(file))
    assert done.returncode == 2 and str(file) in done.stderr and "sk-secret" not in done.stderr


def test_a_new_key_works(redis_url: str, tmp_path: Path) -> None:
    done = invoke("gateway", "--new-key", "cameras")
    secret = done.stderr.split()[-1]
    file = tmp_path / "keys.json"
    file.write_text(done.stdout)
    assert secret not in done.stdout
    with gateway_thread(redis_url, file) as url:
        response = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {secret}"})
        assert response.json()["data"][0]["id"] == MODEL


@pytest.mark.proof
def test_a_stopped_gateway_lets_answers_end(
    redis_url: str, connection: redis.Redis, answerer: Answerer, eventually: Eventually, tmp_path: Path
) -> None:
    with gateway(redis_url, tmp_path / "log") as running:
        request = Request(running.url, body(stream=True))
        (job,) = waiting(connection, eventually)
        os.kill(running.pid, 15)
        eventually(lambda: "Waiting for connections to close" in running.log.read_text())
        answerer.answer(job, "A red star.")
        request.end()
        assert request.text == "A red star."
        assert running.stop(SECONDS) == 0




def test_a_gateway_that_stops_ends_long_answers_in_order(
    redis_url: str, connection: redis.Redis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 1)
    with gateway_thread(redis_url) as url:
        request = Request(url, body())
        waiting(connection, eventually)
    assert request.end().status_code == 503 and request.json["error"]["code"] == "server_unavailable"
    assert not connection.llen(QUEUE) and "Exception in ASGI application" not in caplog.text


def test_a_second_interrupt_ends_a_gateway_at_once_and_in_order(
    redis_url: str, connection: redis.Redis, eventually: Eventually, tmp_path: Path
) -> None:
    arguments = "--files", tmp_path / "files"
    with gateway(redis_url, tmp_path / "log", *arguments) as running, open_socket(running.url) as link:
        send(link, body(stream=True))
        waiting(connection, eventually)
        os.kill(running.pid, 2)
        eventually(lambda: "Waiting for connections to close" in running.log.read_text())
        os.kill(running.pid, 2)
        assert link.recv(65536).startswith(b"HTTP/1.1 503")
        with pytest.raises(SailqError, match="ended"):
            eventually(running.check)
        assert running.stop() == 0 and "Traceback" not in running.log.read_text()
        assert not connection.llen(QUEUE)
