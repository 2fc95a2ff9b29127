"""A real Prometheus with deploy/prometheus: its own checks, and every panel and alert of ours asked of it.

`make test-prometheus` runs this; it needs Debian's or Ubuntu's package `prometheus`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from gateways import gateway
from scraping import free_port

from sailq.producer.client import Client
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.producer.samples import write_samples

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/sailq.json").read_text())
INTERVAL, RUN_SECONDS = 1, 20.0

pytestmark = pytest.mark.prometheus


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not there: apt install prometheus")
    return found


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_configuration() -> None:
    assert "14 rules found" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_and_is_silent() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


class Prometheus:
    """A running one, with deploy/prometheus' configuration but for where everything is and how often it looks."""

    def __init__(self, stack: ExitStack, folder: Path, worker: int, server: int, gateway: str) -> None:
        shutil.copytree(DEPLOY / "prometheus", folder)
        config = yaml.safe_load((folder / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"}
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        jobs["sailq-server"]["static_configs"] = [{"targets": [f"127.0.0.1:{server}"]}]
        config["scrape_configs"].remove(jobs["sailq"])  # compose's
        jobs["sailq-gateway"]["static_configs"] = [{"targets": [gateway.removeprefix("http://")]}]
        del jobs["sailq-gateway"]["dns_sd_configs"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "boxes/here.yml").write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{worker}"]}]))
        self.port = free_port()
        command = [program("prometheus"), f"--config.file={folder}/prometheus.yml",
                   f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"]
        process = ManagedProcess("prometheus", command, folder / "prometheus.log")
        stack.callback(process.stop)
        process.wait_until(self.ready, 30)

    def ready(self) -> bool:
        try:
            return bool(self.get("query", query="1"))
        except OSError:
            return False

    def get(self, what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        for name, value in {"$model": ".*", "$instance": ".*", "$__rate_interval": f"{10 * INTERVAL}s"}.items():
            query = query.replace(name, value)
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found


@pytest.mark.timeout(180)
def test_every_panel_has_data_for_a_working_fleet(
    redis_url: str, client: Client, start_worker: Callable[..., ManagedProcess], tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    rows = list(write_samples(7, 3, tmp_path / "samples"))
    ports = free_port(), free_port()
    start_worker("--metrics-address", "127.0.0.1", "--metrics-port", str(ports[0]))
    client.connection.config_set("maxmemory", 2**30)
    with ExitStack() as stack:
        stack.callback(client.connection.config_set, "maxmemory", 0)
        command = sailq_command("exporter", "--redis-url", redis_url, "--address", "127.0.0.1", "--port", str(ports[1]))
        stack.callback(ManagedProcess("exporter", command, tmp_path / "exporter.log").stop)
        asked = stack.enter_context(gateway(redis_url, tmp_path / "gateway.log"))
        openai_client = stack.enter_context(openai.OpenAI(base_url=f"{asked.url}/v1", api_key="none"))
        prometheus = Prometheus(stack, tmp_path / "prometheus", *ports, asked.url)
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:  # send requests for as long as the rates look back, some of them wrong
            jobs = [client.submit(row["messages"], base=tmp_path / "samples").job for row in rows]
            jobs.append(client.submit([{"role": "user", "content": [{"type": "text", "text": "word " * 20_000}]}]).job)
            dict(client.as_completed(jobs, 30))
            openai_client.chat.completions.create(
                model="sailq-tiny", messages=[{"role": "user", "content": "Hello"}]
            )
        empty = [
            panel["title"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
            if not [one for one in prometheus.ask(target["expr"]) if one["value"][1] != "NaN"]
        ]
        assert empty == ["Chip temperature", "TPU utilization", "Device memory"]  # a CPU has no such sensors
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == 14 and {rule["health"] for rule in rules} == {"ok"}
        (up,) = prometheus.ask('up{job="sailq"}')
        assert up["metric"]["instance"] == f"127.0.0.1:{ports[0]}" and up["value"][1] == "1"
        client.submit([{"role": "user", "content": [{"type": "text", "text": "?"}]}], model="nobodys")
        eventually(lambda: prometheus.ask('ALERTS{alertname="SailqNoWorkers", model="nobodys"}'))
