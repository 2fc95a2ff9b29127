"""Metrics for Prometheus, over HTTP: what the exporters of both sides share.

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
    """A registry that `http://ADDRESS:PORT/metrics` shows meanwhile, with the process's own figures in it.

    Whoever can reach the port can read it: there are figures and names, and nothing of any job's content.

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
    """In Prometheus' text format, whatever is asked for: prometheus-client (0.26) writes `sailq:` as `sailq_` in the
    other one, which Prometheus prefers."""
    shown = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer: Iterable[bytes] = shown({**environ, "HTTP_ACCEPT": "text/plain;version=0.0.4"}, start_response)
        return answer

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """Raises OSError where it cannot be bound."""

    daemon_threads = True

    def __init__(self, address: str, port: int, application: WSGIApplication) -> None:
        self.address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((address, port), _SilentHandler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Without asking the DNS for this machine's name, which a box may wait for."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line for each scrape says nothing to anybody."""
