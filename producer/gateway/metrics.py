"""The gateway's metrics. The names of its own begin with `sailq:gateway_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from sailq.shared.jobs import Result
from sailq.shared.metrics_server import PREFIX

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0)


class Metrics:
    """Counts requests by key, answers and tokens. A key's name is a label, its secret is not."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        name = f"{PREFIX}gateway_"
        self._requests = Counter(
            f"{name}requests", "Requests by API key, path and HTTP status.", ["key", "path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{name}request_duration_seconds", "Time until a request was answered, or its stream ended.", ["path"],
            buckets=_SECONDS, registry=registry,
        )
        self.open = Gauge(f"{name}open_requests", "Requests that are being answered.", registry=registry)
        self._prompt = Counter(f"{name}prompt_tokens", "Prompt tokens by API key.", ["key"], registry=registry)
        self._generated = Counter(
            f"{name}generation_tokens", "Generated tokens by API key.", ["key"], registry=registry
        )

    def answered(self, key: str, path: str, status: int, seconds: float) -> None:
        self._requests.labels(key, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def used(self, key: str, result: Result) -> None:
        """Counts the tokens of a job."""
        self._prompt.labels(key).inc(result.usage.prompt_tokens)
        self._generated.labels(key).inc(result.usage.completion_tokens)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)
