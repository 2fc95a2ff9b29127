#!/usr/bin/env python3
"""Writes dashboards/sailq.json, the dashboard that Grafana loads. To change the dashboard, edit this file and run it.

    deploy/grafana/make_dashboard.py

A panel has a title, a description, a unit of Grafana's, and queries with their legends. `OF` limits a query to the
models and workers that are selected at the top.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "dashboards" / "sailq.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8
MODEL, OF = '{model=~"$model"}', '{model=~"$model", instance=~"$instance"}'
RATE = "$__rate_interval"

Json = dict[str, Any]


def quantiles(metric: str) -> list[tuple[str, str]]:
    rates = f"sum by (le) (rate({metric}_bucket{OF}[{RATE}]))"
    return [(f"histogram_quantile({share}, {rates})", f"{100 * share:g} %") for share in (0.5, 0.95, 0.99)]


def per_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{OF}[{RATE}]))"


ANSWERED = '{model=~"$model", instance=~"$instance", finish_reason=~"stop|length"}'
NUMBERS = [
    ("Workers up", "short", 'count(up{job="sailq"} == 1) or vector(0)'),
    ("Slots in use", "short", f"sum(sailq:num_requests_running{OF})"),
    ("Tokens / s", "short", f"sum(rate(sailq:generation_tokens_total{OF}[{RATE}]))"),
    ("Answers / minute", "short", f"60 * sum(rate(sailq:requests_finished_total{ANSWERED}[{RATE}]))"),
    ("Waiting jobs", "short", f"sum(sailq:queue_depth{MODEL})"),
    ("Oldest wait", "s", f"max(sailq:queue_oldest_wait_seconds{MODEL})"),
    ("Failed jobs", "short", f"sum(sailq:failed_jobs{MODEL})"),
    ("Server memory", "bytes", "sailq:server_memory_used_bytes"),
]
GRAPHS: dict[str, list[tuple[str, str, str, list[tuple[str, str]]]]] = {
    "Queues": [
        ("Waiting jobs", "Jobs that wait for a worker. Deferred: for an earlier turn or another job.", "short", [
            (f"sailq:queue_depth{MODEL}", "{{model}}"), (f"sailq:queue_deferred{MODEL}", "{{model}}, deferred")]),
        ("Oldest wait", "How long the oldest job in the queue has waited.", "s",
         [(f"sailq:queue_oldest_wait_seconds{MODEL}", "{{model}}")]),
        ("Requests / minute by finish reason", "", "short",
         [(f"60 * {per_second('sailq:requests_finished_total', 'finish_reason')}", "{{finish_reason}}")]),
        ("Errors / minute by code",
         "bad_media, bad_request and too_long are faults of the job; internal is a fault of the worker.", "short", [(
            '60 * sum by (code) (rate(sailq:requests_finished_total{model=~"$model", instance=~"$instance", '
            f'finish_reason="error"}}[{RATE}]))', "{{code}}")]),
        ("Attempts per request", "More than 1 if workers died or stopped and others took over.", "short", [
            (f"sum(rate(sailq:request_attempts_total{OF}[{RATE}])) / "
             f"sum(rate(sailq:requests_finished_total{OF}[{RATE}]))", "attempts")]),
        ("Failed jobs", "Jobs that `sailq failed` lists.", "short", [(f"sailq:failed_jobs{MODEL}", "{{model}}")]),
    ],
    "Latency": [
        ("Time to first token", "From submission to the first token, including the time in the queue.", "s",
         quantiles("sailq:time_to_first_token_seconds")),
        ("Time between tokens", "", "s", quantiles("sailq:inter_token_latency_seconds")),
        ("End-to-end latency", "From submission to the result.", "s", quantiles("sailq:e2e_request_latency_seconds")),
        ("Time in the queue", "From submission until a worker claims the job.", "s",
         quantiles("sailq:request_queue_time_seconds")),
        ("Time per stage", "Mean time of a request in each stage, after the queue.", "s", [
            (f"sum by (stage) (rate(sailq:request_stage_seconds_sum{OF}[{RATE}])) / "
             f"sum by (stage) (rate(sailq:request_stage_seconds_count{OF}[{RATE}]))", "{{stage}}")]),
    ],
    "Workers": [
        ("Tokens / s", "", "short", [(per_second("sailq:generation_tokens_total", "instance"), "{{instance}}")]),
        ("Slots in use", "", "percentunit", [
            (f"sum by (instance) (sailq:num_requests_running{OF}) / sum by (instance) (sailq:slots{OF})",
             "{{instance}}")]),
        ("Device busy", "Share of the time spent in calls to the device.", "percentunit",
         [(per_second("sailq:device_busy_seconds_total", "instance"), "{{instance}}")]),
        ("Prompt tokens / s", "Prompt tokens include vision tokens.", "short", [
            (f"sum(rate(sailq:prompt_tokens_total{OF}[{RATE}]))", "prompt"),
            (f"sum(rate(sailq:vision_tokens_total{OF}[{RATE}]))", "vision")]),
        ("Vision cache hit rate", "Share of clips and images that were not encoded again.", "percentunit", [
            (f"sum(rate(sailq:vision_cache_hits_total{OF}[{RATE}])) / "
             f"sum(rate(sailq:vision_cache_queries_total{OF}[{RATE}]))", "hits")]),
        ("Claimed jobs without a slot", "", "short", [(f"sailq:num_requests_waiting{OF}", "{{instance}}")]),
        ("Chip temperature", "", "celsius", [(f"sailq:tpu_temperature_celsius{OF}", "{{instance}}")]),
        ("TPU utilization", "As reported by the TPU's driver.", "percentunit",
         [(f"sailq:tpu_utilization_ratio{OF}", "{{instance}}")]),
        ("Device memory", "", "percentunit", [
            (f"sailq:tpu_memory_used_bytes{OF} / sailq:tpu_memory_total_bytes{OF}", "{{instance}}")]),
        ("Worker process memory", "", "bytes",
         [('process_resident_memory_bytes{job="sailq", instance=~"$instance"}', "{{instance}}")]),
    ],
    "Gateway": [
        ("Requests / minute by status", "429: a limit of a key. 499: the client disconnected.", "short", [
            (f"60 * sum by (status) (rate(sailq:gateway_requests_total[{RATE}]))", "{{status}}")]),
        ("Requests / minute by API key", "", "short", [
            (f"60 * sum by (key) (rate(sailq:gateway_requests_total[{RATE}]))", "{{key}}")]),
        ("Time to answer", "From the request to the end of its answer.", "s", [
            (f"histogram_quantile({share}, sum by (le) (rate(sailq:gateway_request_duration_seconds_bucket"
             f'{{path="/v1/chat/completions"}}[{RATE}])))', f"{100 * share:g} %") for share in (0.5, 0.95, 0.99)]),
        ("Open requests", "", "short", [("sailq:gateway_open_requests", "{{instance}}")]),
        ("Prompt tokens / s by API key", "", "short", [
            (f"sum by (key) (rate(sailq:gateway_prompt_tokens_total[{RATE}]))", "{{key}}")]),
        ("Generated tokens / s by API key", "", "short", [
            (f"sum by (key) (rate(sailq:gateway_generation_tokens_total[{RATE}]))", "{{key}}")]),
    ],
    "Server": [
        ("Memory", "Clips use most of it while many jobs wait.", "bytes", [
            ("sailq:server_memory_used_bytes", "used"), ("sailq:clip_bytes", "clips"),
            ("sailq:server_memory_limit_bytes > 0", "limit")]),
        ("Claimed jobs", "Jobs that workers have claimed.", "short", [(f"sailq:queue_started{MODEL}", "{{model}}")]),
        ("Live workers", "Workers whose record on the server has not expired.", "short",
         [(f"sailq:workers{MODEL}", "{{model}}")]),
        ("Conversations", "", "short", [("sailq:conversations", "kept")]),
    ],
}


def number(title: str, unit: str, query: str) -> Json:
    return {
        "type": "stat", "title": title, "datasource": SOURCE, "targets": [target(query, "", 0)],
        "fieldConfig": {"defaults": {"unit": unit, "decimals": 0 if unit == "short" else 1}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"},
    }


def graph(title: str, about: str, unit: str, queries: list[tuple[str, str]]) -> Json:
    return {
        "type": "timeseries", "title": title, "description": about, "datasource": SOURCE,
        "targets": [target(query, legend, index) for index, (query, legend) in enumerate(queries)],
        "fieldConfig": {"defaults": {
            "unit": unit, "min": 0, "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"},
        }, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def workers_table() -> Json:
    shown = ["instance", "worker", "model", "model_version", "device", "version"]
    return {
        "type": "table", "title": "Workers", "datasource": SOURCE,
        "targets": [{**target(f"sailq:worker_info{OF}", "", 0), "format": "table", "instant": True}],
        "fieldConfig": {"defaults": {}, "overrides": []},
        "transformations": [{"id": "organize", "options": {
            "indexByName": {name: index for index, name in enumerate(shown)},
            "excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True},
        }}],
    }


def target(query: str, legend: str, index: int) -> Json:
    return {"expr": query, "legendFormat": legend, "refId": chr(ord("A") + index), "datasource": SOURCE}


def panels() -> Iterator[Json]:
    """All panels, each with an id and its position in the grid of 24 columns."""
    placed = 0

    def at(panel: Json, x: int, y: int, width: int, height: int) -> Json:
        nonlocal placed
        placed += 1
        return {"id": placed, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **panel}

    for index, stat in enumerate(NUMBERS):
        yield at(number(*stat), 3 * index, 0, 3, 4)
    y = 4
    for title, graphs in GRAPHS.items():
        yield at({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, y, 24, 1)
        for index, one in enumerate(graphs):
            yield at(graph(*one), WIDTH * (index % 3), y + 1 + HEIGHT * (index // 3), WIDTH, HEIGHT)
        y += 1 + HEIGHT * -(-len(graphs) // 3)
    yield at(workers_table(), 0, y, 24, HEIGHT)


def variable(name: str, query: str) -> Json:
    return {
        "type": "query", "name": name, "label": name, "datasource": SOURCE,
        "query": {"query": query, "refId": name}, "definition": query,
        "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> Json:
    return {
        "uid": "sailq", "title": "sailq", "tags": ["sailq"], "schemaVersion": 39, "editable": False,
        "timezone": "browser", "refresh": "15s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            variable("model", "label_values(sailq:queue_depth, model)"),
            variable("instance", 'label_values(up{job="sailq"}, instance)'),
        ]},
        "panels": list(panels()),
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n")
