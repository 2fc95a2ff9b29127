"""The queries of deploy/grafana and deploy/prometheus match the metrics of real workers and a real exporter."""

from __future__ import annotations

import json
import re
import runpy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from farm import Farm
from null_runner import NullRunner
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from scraping import exporter, free_port, scrape

from sailq.producer.gateway.metrics import Metrics as GatewayMetrics
from sailq.shared.connection import connect
from sailq.shared.jobs import Result
from sailq.shared.workers import live_workers
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.process.metrics import Metrics
from sailq.worker.runners.sensors import Readings

DEPLOY = Path(__file__).parents[2] / "deploy"
GRAFANA, PROMETHEUS = DEPLOY / "grafana", DEPLOY / "prometheus"
DASHBOARD = json.loads((GRAFANA / "dashboards/sailq.json").read_text())
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    *[(panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]],
    *[(rule["alert"], rule["expr"], "".join(rule["annotations"].values())) for rule in RULES],
]
JOBS = {"sailq", "sailq-server", "sailq-gateway"}
"""What `job` is once prometheus.yml has relabelled it."""


class Chip(NullRunner):
    """A null runner whose device has all sensors."""

    def readings(self) -> Readings:  # type: ignore[override]
        return Readings(0.5, 60, 1, 2)


def of_a_chip() -> list[Metric]:
    spec, registry = ModelSpec.load(resolve("sailq-tiny")), CollectorRegistry()
    engine = Engine(spec, Chip(spec, 1), ChatTokenizer(spec))
    Metrics(registry, engine).watch(Scheduler(engine), "worker")
    return list(registry.collect())


def of_a_gateway() -> list[Metric]:
    metrics = GatewayMetrics()
    for status in (200, 500, 503, 504):
        metrics.answered("cameras", "/v1/chat/completions", status, 1.0)
    metrics.used("cameras", Result(job="x", conversation="x", turn=0, finish_reason="stop", finished_at=1.0))
    return list(text_string_to_metric_families(metrics.text().decode()))


@pytest.fixture(scope="module")
def shown(farm: Farm, server_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """The labels and their values of each series that Prometheus gets, by the series' name."""
    url, folder, port = f"{server_url}?db=2", tmp_path_factory.mktemp("shown"), free_port()
    worker = farm.start(url, folder / "worker.log", SAILQ_METRICS_PORT=str(port))
    try:
        with connect(url) as connection, exporter(url, folder / "exporter.log") as look:
            while not live_workers(connection):
                assert worker.alive, worker.log.read_text()
                time.sleep(0.05)
            families = [*scrape(port).families, *look().families, *of_a_chip(), *of_a_gateway()]
    finally:
        worker.close()
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in families:
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
            found.setdefault(sample.name, {})
    for labels in found.values():
        labels.update({"job": JOBS, "instance": set()})
    return found


@dataclass
class Query:
    """A query's selectors, and the labels by which it aggregates, if it does."""

    selectors: list[promql.VectorSelector] = field(default_factory=list)
    by: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, text: str) -> Query:
        query = cls()

        def visit(node: Any) -> None:
            if isinstance(node, promql.MatrixSelector):
                node = node.vector_selector
            if isinstance(node, promql.VectorSelector):
                query.selectors.append(node)
            if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
                query.by.update(node.modifier.labels)

        promql.walk(promql.parse(text.replace("$__rate_interval", "1m")), visit)
        return query


@pytest.mark.parametrize(("title", "text", "words"), QUERIES, ids=[f"{title}: {text}" for title, text, _ in QUERIES])
def test_queries_use_only_metrics_and_labels_that_exist(
    title: str, text: str, words: str, shown: dict[str, dict[str, set[str]]]
) -> None:
    query = Query.read(text)
    assert query.selectors or text.startswith("vector")
    for selector in query.selectors:
        assert selector.name in shown, f"nothing shows {selector.name}"
        labels = shown[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{selector.name} has no {matcher.name}"
            if labels[matcher.name]:
                wanted = [word for word in matcher.value.split("|") if not word.startswith("$")]
                assert set(wanted) <= labels[matcher.name], f"{selector.name} has no {matcher.name} {matcher.value}"
    there = query.by or set.intersection(*({*shown[selector.name]} for selector in query.selectors))
    assert query.by <= {label for selector in query.selectors for label in shown[selector.name]}
    legend = set(re.findall(r"\$labels\.(\w+)", words)) if title.startswith("Sailq") else {
        *re.findall(r"{{(\w+)}}", words)
    }
    assert legend <= there, f"{title} names {legend - there}, which its query has lost"


def test_every_metric_is_on_the_dashboard(shown: dict[str, dict[str, set[str]]]) -> None:
    asked = {selector.name for _, text, _ in QUERIES for selector in Query.read(text).selectors}
    whole = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown if name.startswith("sailq:")}
    assert ours - whole == set()


def test_a_worker_has_few_series() -> None:
    """deploy/prometheus/README.md says how many, the process' own six included."""
    assert 100 < sum(len(family.samples) for family in of_a_chip()) < 115


def test_the_dashboard_file_is_what_make_dashboard_writes() -> None:
    assert runpy.run_path(str(GRAFANA / "make_dashboard.py"))["dashboard"]() == DASHBOARD


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_use_the_provisioned_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    named = [panel["datasource"] for panel in PANELS] + [one["datasource"] for one in DASHBOARD["templating"]["list"]]
    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in named)
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]


def relabelled() -> Iterator[str]:
    for job in CONFIG["scrape_configs"]:
        rules = {rule["target_label"]: rule["replacement"] for rule in job.get("relabel_configs", [])}
        yield rules.get("job", job["job_name"])


def test_prometheus_jobs_have_the_names_used_in_queries() -> None:
    assert set(relabelled()) == JOBS
    assert CONFIG["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_has_its_runbook(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^### (.+)$", (DEPLOY.parent / page).read_text(), re.MULTILINE)
    assert rule["alert"] in headings and anchor == rule["alert"].lower()
    assert rule["labels"]["severity"] in {"page", "warn"} and rule["annotations"]["summary"].endswith(".")


def test_every_alert_has_a_test() -> None:
    """By `make test-prometheus`, with Prometheus' own promtool: it fires, and it is silent when all is well."""
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    tried = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test["alert_rule_test"]]
    assert {*tried} == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_the_example_of_a_list_of_boxes_is_valid() -> None:
    example = yaml.safe_load((PROMETHEUS / "boxes/example.yml.txt").read_text())
    assert all(re.fullmatch(r"[\d.]+:9610", target) for group in example for target in group["targets"])


