"""deploy/gateway on a booted machine: the commands of its page, and the service that they start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from debian import TREE
from flashed import Server
from machine import Machine, Service, until
from openai_media import asked

from sailq.producer.managed_process import ManagedProcess, sailq_command

pytestmark = [pytest.mark.box, pytest.mark.timeout(3600)]
UNIT = "sailq-gateway.service"


@pytest.fixture(scope="module")
def installed(box: Machine, server: Server) -> Iterator[str]:
    """The key of the gateway that the page's commands have started."""
    page = (TREE / "deploy/gateway/README.md").read_text()
    (commands,) = re.findall(r"```sh\n# needs a machine with systemd\n(.*?)```", page, re.DOTALL)
    checkout = "mkdir /root/sailq; cd /data/sailq; cp -rL pyproject.toml README.md LICENSE shared producer worker " \
        "operators deploy /root/sailq; cp -r sailq /root/sailq; cd /root/sailq"
    text = f"set -e; sudo() {{ \"$@\"; }}; {checkout}; echo SAILQ_REDIS_URL={server.url} > producer.env\n{commands}"
    done = box.run("bash", "-c", text, seconds=1500)
    yield re.findall(r"sk-\S+", done.stderr)[0]
    box.run("systemctl", "disable", "--now", UNIT)


@pytest.fixture
def worker(server: Server, tmp_path: Path) -> Iterator[ManagedProcess]:
    """With sailq-tiny, on this machine."""
    command = sailq_command("worker", "--redis-url", server.url, "--threads", "1")
    worker = ManagedProcess("worker", command, tmp_path / "worker.log")
    try:
        worker.wait_until(lambda: "takes jobs" in worker.log.read_text(), 90)
        yield worker
    finally:
        worker.stop()


def test_the_pages_commands_start_a_gateway(box: Machine, installed: str, server: Server) -> None:
    service = Service(box, UNIT)
    service.wait_for("ActiveState", "active")
    with openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=installed) as client:
        until(healthy, "a gateway that answers")
        assert isinstance(client.models.list().data, list)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-other").models.list()
    assert service["User"] == "sailq-gateway" and int(service["LimitNOFILE"]) == 65536
    log = box.run("journalctl", "--unit", UNIT, "--no-pager").stdout
    assert "API is at http://127.0.0.1:8000/v1" in log and installed not in log


def test_it_answers_about_a_video(installed: str, worker: ManagedProcess, tmp_path: Path) -> None:
    """Its child that reads media starts with the unit's rights."""
    question = asked("video", tmp_path)
    with openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=installed) as client:
        answer = client.chat.completions.create(
            model="sailq-tiny", messages=question.messages, extra_body=question.body  # type: ignore[arg-type]
        )
    assert answer.choices[0].message.content == question.answer


def test_a_stop_is_no_failure_and_a_killed_gateway_comes_back(box: Machine, installed: str) -> None:
    service = Service(box, UNIT)
    before, pid = service.ends(), service["MainPID"]
    service.systemctl("kill", "--signal=KILL")
    service.wait_for_start_after(pid)
    until(healthy, "a gateway that answers")
    service.systemctl("stop")
    assert (service["ActiveState"], service["Result"]) == ("inactive", "success")
    assert service.ends()[len(before):][0] == ("killed", "9")


def test_wrong_keys_cause_no_restart(box: Machine, installed: str) -> None:
    service = Service(box, UNIT)
    file = box.root / "etc/sailq/gateway-keys.json"
    right = file.read_text()
    file.write_text(json.dumps({"cameras": {}}))
    try:
        service.systemctl("start", check=False)
        service.wait_for("ActiveState", "failed")
        assert (service["ExecMainStatus"], service["NRestarts"]) == ("2", "0")
    finally:
        file.write_text(right)
    service.systemctl("reset-failed")
    service.systemctl("start")
    until(healthy, "a gateway that answers")


def healthy() -> bool:
    try:
        return httpx.get("http://127.0.0.1:8000/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
