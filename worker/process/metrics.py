"""The Prometheus metrics of one worker.

A few numbers are counted as events happen; the others are read at each scrape. Nothing is read from the server:
`sailq exporter` exports what all workers share, such as the queues.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import accumulate
from logging import getLogger

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sailq.shared.jobs import Result
from sailq.shared.metrics_server import PREFIX, exposed
from sailq.shared.settings import Settings

from ..engine.engine import Engine
from ..engine.scheduler import Scheduler

_LABELS = ("model", "device")
_LATENCY_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_SPAN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds: from a claim on an idle box to a job that waits for a night."""
_STAGES = ("fetch", "preprocess", "vision_encode", "prefill", "decode")
_REASONS = ("stop", "length", "cancelled", "deadline")
_CODES = ("internal", "bad_request", "bad_media", "too_long", "unsupported")
"""Error codes whose series exist from the start, so that Prometheus sees the first error as an increase."""

_log = getLogger("sailq.worker")


@contextmanager
def exposed_at(settings: Settings) -> Iterator[CollectorRegistry]:
    """A registry, served at `metrics_port` if that is set. See `shared.metrics_server.exposed`."""
    if not settings.metrics_port:
        yield CollectorRegistry()
        return
    with exposed(settings.metrics_address, settings.metrics_port) as registry:
        _log.info("metrics on port %d of %s", settings.metrics_port, settings.metrics_address)
        yield registry


class Metrics:
    """The instruments of a worker: call `inter_token_latency` for each token, and `finished` for each result
    written."""

    def __init__(self, registry: CollectorRegistry, engine: Engine) -> None:
        of = {"model": engine.card.name, "device": engine.device}
        self._registry, self._engine, self._of = registry, engine, of

        def histogram(name: str, about: str) -> Histogram:
            return Histogram(PREFIX + name, about, _LABELS, registry=registry, buckets=_SPAN_BOUNDS).labels(**of)

        self._latencies = _InterTokenLatencies()
        self.inter_token_latency = self._latencies.observe
        self._spans = {
            "queue_wait": histogram("request_queue_time_seconds", "From submission until a worker claimed the job."),
            "time_to_first_token": histogram("time_to_first_token_seconds", "From submission to the first token."),
            "end_to_end": histogram("e2e_request_latency_seconds", "From submission to the result."),
        }
        stages = Summary(
            f"{PREFIX}request_stage_seconds", "Time that a request spent in each stage it reached.",
            (*_LABELS, "stage"), registry=registry,
        )
        self._stages = {stage: stages.labels(**of, stage=stage) for stage in _STAGES}
        self._finished = Counter(
            f"{PREFIX}requests_finished", "Results written, by finish reason and by error code.",
            (*_LABELS, "finish_reason", "code"), registry=registry,
        )
        for reason, code in [*((reason, "") for reason in _REASONS), *(("error", code) for code in _CODES)]:
            self._finished.labels(**of, finish_reason=reason, code=code)
        self._attempts = Counter(
            f"{PREFIX}request_attempts", "Attempts of these requests, including those of other workers.",
            _LABELS, registry=registry,
        ).labels(**of)

    def finished(self, result: Result) -> None:
        """Counts a result, from any thread."""
        code = result.error.code if result.finish_reason == "error" and result.error is not None else ""
        self._finished.labels(**self._of, finish_reason=result.finish_reason, code=code).inc()
        self._attempts.inc(result.attempt)
        timings = result.timings.model_dump(exclude_none=True)
        for name, seconds in timings.items():
            instrument = self._spans.get(name) or self._stages.get(name)
            if instrument is not None:
                instrument.observe(seconds)

    def watch(self, scheduler: Scheduler, name: str) -> None:
        """Adds the state of the worker `name`, once it takes jobs."""
        self._registry.register(_State(self._engine, scheduler, self._latencies, name))


class _InterTokenLatencies:
    """A histogram with one writer, the device's thread. Without a lock it takes a tenth of the library's time."""

    def __init__(self) -> None:
        self._counts, self._sum = [0] * (len(_LATENCY_BOUNDS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_LATENCY_BOUNDS, seconds)] += 1
        self._sum += seconds

    def family(self, of: tuple[str, str]) -> Metric:
        bounds = [*map(str, _LATENCY_BOUNDS), "+Inf"]
        family = HistogramMetricFamily(
            f"{PREFIX}inter_token_latency_seconds", "Time between two tokens of an answer.", labels=_LABELS
        )
        family.add_metric(of, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        return family


class _State(Collector):
    """A worker's current state, read from its engine and scheduler at each scrape."""

    def __init__(self, engine: Engine, scheduler: Scheduler, latencies: _InterTokenLatencies, name: str) -> None:
        self._engine, self._scheduler, self._latencies = engine, scheduler, latencies
        self._of = (engine.card.name, engine.device)
        self._about = {"worker": name, "version": version("sailq"), "model_version": engine.card.version}

    def collect(self) -> Iterator[Metric]:
        engine, scheduler, counts = self._engine, self._scheduler, self._scheduler.counts
        info = InfoMetricFamily(
            f"{PREFIX}worker", "Name and versions of this worker; missing while the model loads.", labels=_LABELS
        )
        info.add_metric(self._of, self._about)
        yield info
        yield self._latencies.family(self._of)
        yield self._gauge("num_requests_running", "Slots in use.", scheduler.running)
        yield self._gauge("num_requests_waiting", "Claimed requests that wait for a slot.", scheduler.waiting)
        yield self._gauge("slots", "Maximum number of requests that are decoded together.", engine.slots)
        yield self._count("prompt_tokens", "Tokens of prompts, including vision tokens.", counts.prompt_tokens)
        yield self._count("vision_tokens", "Vision tokens of prompts.", counts.vision_tokens)
        yield self._count("generation_tokens", "Tokens of answers.", counts.generation_tokens)
        yield self._count("vision_cache_queries", "Clips and images looked up in the vision cache.", counts.media)
        yield self._count("vision_cache_hits", "Clips and images found in the vision cache.", counts.media_reused)
        yield self._count("device_busy_seconds", "Time spent in calls to the device.", engine.device_seconds)
        if (readings := engine.readings()) is None:
            return
        for name, about, value in (
            ("tpu_utilization_ratio", "Utilization that the TPU's driver reports, 0 to 1.", readings.utilization),
            ("tpu_temperature_celsius", "Temperature of the chip.", readings.celsius),
            ("tpu_memory_used_bytes", "Device memory that all processes use.", readings.memory_used),
            ("tpu_memory_total_bytes", "Size of the device's memory.", readings.memory_total),
        ):
            if value is not None:
                yield self._gauge(name, about, value)

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, about, labels=_LABELS)
        family.add_metric(self._of, value)
        return family

    def _count(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, about, labels=_LABELS)
        family.add_metric(self._of, value)
        return family
