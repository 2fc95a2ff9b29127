"""The nginx configuration of deploy/gateway/README.md, in front of a gateway."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from asking import LONG_ANSWER
from gateways import gateway, key_file
from scraping import free_port

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess

PAGE = Path(__file__).parents[2] / "deploy/gateway/README.md"
KEY = {"Authorization": "Bearer sk-cameras", "Content-Type": "application/json"}
MIB = 2**20

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def proxy(common_worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`url`: of nginx; `http`: a client that trusts it."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "nginx is not there: apt install nginx-light"
    folder = tmp_path_factory.mktemp("nginx")
    certificate, port = folder / "certificate", free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", folder / "key", "-out", certificate],
        check=True, capture_output=True,
    )
    keys = key_file(folder / "keys.json", cameras={}, boss={"page": True})
    arguments = ["--keys", keys, "--files", folder / "files", "--archive", folder / "captions.db"]
    with gateway(common_worker, folder / "gateway.log", *arguments) as running:
        found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
        assert found
        text = found[1]
        for theirs, ours in {
            "127.0.0.1:8000": running.url.removeprefix("http://"), "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/nginx/ai.example.com.crt": str(certificate), "/etc/nginx/ai.example.com.key": str(folder / "key"),
        }.items():
            assert theirs in text
            text = text.replace(theirs, ours)
        places = "\n".join(f"{name}_temp_path {folder}/{name};" for name in (
            "client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; {places}\n{text} }}"
        )
        nginx = ManagedProcess("nginx", [program, "-c", str(folder / "nginx.conf")], folder / "nginx.log")
        try:
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(base_url=f"https://localhost:{port}", verify=context, timeout=120) as http:
                nginx.wait_until(lambda: answers(http), 60)
                yield SimpleNamespace(url=f"https://localhost:{port}/v1", http=http, redis_url=common_worker)
        finally:
            nginx.stop()


def answers(http: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return http.get("/v1/models", headers=KEY).status_code == 200
    return False


def test_a_stream_comes_as_it_is_written_and_a_disconnect_cancels_it(proxy: SimpleNamespace) -> None:
    options = {name: value for name, value in LONG_ANSWER.items() if name != "max_new_tokens"}
    client = openai.OpenAI(base_url=proxy.url, api_key="sk-cameras", http_client=proxy.http, max_retries=0)
    with client.chat.completions.create(
        model="sailq-tiny", messages=[{"role": "user", "content": "Hello"}], stream=True, **options
    ) as stream:
        job = next(iter(stream)).id.removeprefix("chatcmpl-")
        with Client(proxy.redis_url) as looking:
            assert looking.result(job) is None  # it is still being written
    with Client(proxy.redis_url) as looking:
        assert looking.wait(job, timeout=60).finish_reason == "cancelled"


@pytest.mark.parametrize(("mebibytes", "status"), [(63, 400), (65, 413)])
def test_a_request_has_the_gateways_limit(proxy: SimpleNamespace, mebibytes: int, status: int) -> None:
    """400: the gateway has read all of it, and it is no JSON."""
    answer = proxy.http.post("/v1/chat/completions", content=b"x" * (mebibytes * MIB), headers=KEY)
    assert answer.status_code == status


def test_the_file_of_a_batch_may_be_larger(proxy: SimpleNamespace) -> None:
    answer = proxy.http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"\n" * (100 * MIB))},
        headers={"Authorization": KEY["Authorization"]},
    )
    assert (answer.status_code, answer.json()["bytes"]) == (200, 100 * MIB)


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/ready"])
def test_only_the_api_can_be_reached(proxy: SimpleNamespace, path: str) -> None:
    assert proxy.http.get(path).status_code == 404


def test_the_page(proxy: SimpleNamespace) -> None:
    """Its events come at once, and its cookie is for https alone."""
    assert proxy.http.get("/").headers["location"] == "/page/login"
    logged_in = proxy.http.post("/page/login", data={"key": "sk-boss"})
    assert logged_in.status_code == 303 and "Secure" in logged_in.headers["set-cookie"]
    assert proxy.http.get("/").status_code == 200
    with proxy.http.stream("GET", "/page/events") as events:
        assert next(events.iter_lines()) == "retry: 2000"
