"""Serves metrics to Prometheus over HTTP, for `sailq exporter` and for workers.

The names follow vLLM's, under `sailq:`. A process that exports nothing does not import this.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .errors import BadRequest, Unsupported

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, make_wsgi_app
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
        server = _Server(address, port, _as_text(registry))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadRequest(
                f"Port {port} of {address} is taken, perhaps by another worker: each shows its metrics on one of its "
                "own."
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise BadRequest(f"Metrics cannot be shown on port {port} of {address}: {reason}.") from None
    thread = threading.Thread(target=server.serve_forever, name="sailq-metrics", daemon=True)
    thread.start()
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


class _Server(ThreadingMixIn, WSGIServer):
    """The HTTP server. Raises OSError if it cannot be bound."""

    daemon_threads = True

    def __init__(self, address: str, port: int, application: WSGIApplication) -> None:
        self.address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((address, port), _SilentHandler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Binds without a DNS lookup of this machine's name, which can block on a box."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: a line for each scrape has no use."""
