"""Serves metrics to Prometheus over HTTP, for `sailq exporter` and for workers.

The names follow vLLM's, under `sailq:`. A process that exports nothing does not import this.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import BadRequest, Unsupported

try:
    from prometheus_client import (
        CollectorRegistry,
        ProcessCollector,
        disable_created_metrics,
        make_wsgi_app,
        start_http_server,
    )
except ImportError:
    raise Unsupported("Metrics need prometheus-client: pip install 'sailq[metrics]'.") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PREFIX = "sailq:"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, of no use to anybody


@contextmanager
def exposed(address: str, port: int) -> Iterator[CollectorRegistry]:
    """A registry that is served at `http://ADDRESS:PORT/metrics` inside the `with` block. It includes process metrics.

    Anybody who can reach the port can read the metrics. They contain figures and names, but no content of jobs.

    Raises BadRequest, with one sentence, if the port cannot be bound.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadRequest(
                f"Port {port} of {address} is in use, perhaps by another worker: each worker needs its own port for "
                "metrics."
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise BadRequest(f"Metrics cannot be served on port {port} of {address}: {reason}.") from None
    server.set_app(_as_text(registry))
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _as_text(registry: CollectorRegistry) -> WSGIApplication:
    """The metrics in Prometheus' text format, whatever format is requested: prometheus-client (0.26) writes `sailq:` as
    `sailq_` in OpenMetrics, which Prometheus prefers."""
    shown = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer: Iterable[bytes] = shown({**environ, "HTTP_ACCEPT": "text/plain;version=0.0.4"}, start_response)
        return answer

    return application
