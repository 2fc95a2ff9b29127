"""Metrics as Prometheus reads them."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from sailq.producer.managed_process import ManagedProcess, sailq_command


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Scrape:
    """The result of one scrape."""

    families: list[Metric]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series of this name with these labels, of which there is at least one."""
        found = [
            sample.value for family in self.families for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"{name} {labels} is not exported"
        return sum(found)

    def labels(self) -> dict[str, set[str]]:
        """The labels of each series' name."""
        found: dict[str, set[str]] = {}
        for family in self.families:
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found


ACCEPTED = (
    "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""As Prometheus 2 and 3 ask."""


def scrape(port: int) -> Scrape:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": ACCEPTED})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200
        return Scrape(list(text_string_to_metric_families(answer.read().decode())))


@contextmanager
def exporter(url: str, log: Path) -> Iterator[Callable[[], Scrape]]:
    """A running `sailq exporter`, as a function that scrapes it."""
    port = free_port()
    command = sailq_command("exporter", "--redis-url", url, "--address", "127.0.0.1", "--port", str(port))
    process = ManagedProcess("exporter", command, log)
    try:
        process.wait_until(lambda: "are on port" in log.read_text(), 60)
        yield lambda: scrape(port)
        assert process.stop() == 0, process.tail()
    finally:
        process.stop()
