"""Metrics for Prometheus, over HTTP: what the exporters of both sides share.

The names follow vLLM's, under `sailq:`. A process that exports nothing does not import this.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BadRequest, Unsupported

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server
except ImportError:
    raise Unsupported("Metrics need prometheus-client: pip install 'sailq[metrics]'.") from None

PREFIX = "sailq:"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, of no use to anybody


@contextmanager
def exposed(address: str, port: int) -> Iterator[CollectorRegistry]:
    """A registry that `http://ADDRESS:PORT/metrics` shows meanwhile, with the process's own figures in it.

    Whoever can reach the port can read it: there are figures and names, and nothing of any job's content.

    Raises BadRequest, one sentence, where the port cannot be had.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadRequest(
                f"Port {port} of {address} is taken, perhaps by another worker: each shows its metrics on one of its "
                "own."
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise BadRequest(f"Metrics cannot be shown on port {port} of {address}: {reason}.") from None
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
