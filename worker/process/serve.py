"""Assembles and runs a worker process: settings -> model -> engine -> scheduler -> consumer."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import redis
from prometheus_client import CollectorRegistry

from sailq.shared import keys
from sailq.shared.connection import ServerClock, connect, server_errors
from sailq.shared.errors import SailqError
from sailq.shared.settings import Settings

from ..engine.engine import Engine
from ..engine.scheduler import Scheduler
from ..model_files.model_paths import resolve
from ..queue.consumer import Consumer
from ..queue.job_runner import JobRunner
from ..queue.job_store import JobStore
from ..queue.publisher import Publisher
from ..queue.refusals import Identity, Refusals
from .metrics import Metrics, exposed_at
from .registration import Registration
from .self_test import self_test
from .systemd_notifier import SystemdNotifier
from .watchdog import Watchdog

LOOK_AHEAD = 2
"""Jobs claimed beyond the slots, so that their frames and tokens are ready when a slot is freed."""
MAX_CONNECTIONS = 4
"""One waits for jobs and one for commands. Two carry all other commands, for any number of slots."""
SWITCH_SECONDS = 0.0005
"""The thread switch interval in seconds. The device's thread returns to Python after each net, tens of times a step,
while other threads prepare jobs. With Python's default it would wait for up to 5 ms each time."""

_log = logging.getLogger("sailq.worker")


def serve(
    settings: Settings, load: Callable[[Path], Engine], *, drain_seconds: float = 60.0, device_timeout: float = 120.0
) -> None:
    """Loads the model once and serves its queue until SIGTERM or SIGINT.

    Args:
        load: loads the model in a directory: `Engine.load` with its options.
        drain_seconds: seconds that running jobs get after SIGTERM.
        device_timeout: seconds after which a call to the device ends the process.

    Raises Unsupported for what cannot be served, BadRequest if the metrics port cannot be bound, and
    ServerUnavailable when the server does not answer at start; later it waits for the server to return.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until the consumer sets its own handlers
    sys.setswitchinterval(SWITCH_SECONDS)
    model_dir = resolve(settings.model)
    connection = connect(settings.redis_url, max_connections=MAX_CONNECTIONS - 1)
    waiting = connect(settings.redis_url, max_connections=1, retries=0)
    with server_errors(connection):
        connection.ping()
    with exposed_at(settings) as registry:  # before the model is loaded: a port in use ends the worker at once
        _serve(settings, lambda: load(model_dir), connection, waiting, registry, drain_seconds, device_timeout)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends a worker that is still loading and so has no jobs.

    An exception from this handler could be lost: a module that is being imported may raise another in its place, and
    a destructor drops it.
    """
    _log.warning("stopped while the model was loading")
    logging.shutdown()
    os._exit(0)


def _serve(
    settings: Settings, load: Callable[[], Engine], connection: redis.Redis, waiting: redis.Redis,
    registry: CollectorRegistry, drain_seconds: float, device_timeout: float,
) -> None:
    notifier = SystemdNotifier()
    notifier.status(f"loading {Path(settings.model).name}")
    began = time.monotonic()
    engine = load()
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    own, alias = engine.card.name, settings.alias
    models = (own, alias) if alias not in {None, own} else (own,)
    _log.info(
        "loaded %s (version %s) on %s in %.1f s", own, engine.card.version, engine.device, time.monotonic() - began
    )
    metrics = Metrics(registry, engine)
    scheduler = Scheduler(engine, metrics.inter_token_latency)
    watchdog = Watchdog(engine, device_timeout, lambda: scheduler.alive, notifier.alive)
    watchdog.start()
    self_test(engine)
    publisher = Publisher(connection, settings.stream_ttl)
    store = JobStore(connection, waiting, settings, name)
    identity = Identity(worker=name, device=engine.device, models=models)
    refusals = Refusals(store, ServerClock(connection), identity, metrics.finished)
    job_runner = JobRunner(connection, engine, scheduler, publisher, store, refusals)
    registration = Registration(connection, engine, scheduler, notifier, name, models)
    consumer = Consumer(
        [keys.queue(model) for model in models], job_runner, store, refusals, connection=connection, waiting=waiting,
        name=name, places=engine.slots + LOOK_AHEAD, drain_seconds=drain_seconds, announce=registration.beat,
        ready=notifier.ready,
    )
    scheduler.start()
    try:
        registration.publish_cards()
        metrics.watch(scheduler, name)
        _log.info("worker %s takes jobs for %s, %d at a time", name, " and ".join(models), engine.slots)
        consumer.work()
        if not consumer.stop_requested:
            raise SailqError("The worker's loop failed; its log says why.")
    finally:
        scheduler.close()
        publisher.close()
        watchdog.stop()
        registration.withdraw()
        for number in (signal.SIGTERM, signal.SIGINT):  # at exit, Python restores the default action, which kills
            signal.signal(number, signal.SIG_IGN)
