"""A worker process, put together: settings -> model -> engine -> scheduler -> consumer."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import redis

from ..shared import keys
from ..shared.codec import encode
from ..shared.connection import ServerClock, connect, server_errors
from ..shared.errors import SailqError
from ..shared.lifecycle import Lifecycle
from ..shared.settings import Settings
from .catalog import resolve
from .consumer import RECORD_SECONDS, Consumer
from .engine import Engine
from .execution import Executor, Identity
from .publisher import Publisher
from .scheduler import Scheduler
from .self_test import self_test
from .supervisor import Supervisor
from .watchdog import Watchdog

LOOK_AHEAD = 2
"""Jobs taken beyond the slots, so that their frames and tokens are ready when a slot frees."""
MAX_CONNECTIONS = 4
"""One waits for jobs, one for commands; two carry everything else, whatever the number of slots."""
_SWITCH_SECONDS = 0.0005
"""The device's thread comes back from each net to Python, tens of times a step, while other threads do their jobs' host
work: by default it would wait for up to 5 ms each time."""
_CARD_TTL = 30 * 86_400

_log = logging.getLogger("sailq.worker")


def serve(
    settings: Settings, load: Callable[[Path], Engine], *, drain_seconds: float = 60.0, device_timeout: float = 120.0
) -> None:
    """Loads the model once and serves its queue until SIGTERM or SIGINT.

    Args:
        load: the model in a directory: `Engine.load` with its options.
        drain_seconds: what running jobs have to finish in when the worker is told to stop.
        device_timeout: seconds after which a call to the device ends the process.

    Raises Unsupported for what cannot be served and ServerUnavailable when the server does not answer at start; later
    it waits for the server to return.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    model_dir = resolve(settings.model)
    connection = connect(settings.redis_url, max_connections=MAX_CONNECTIONS)
    with server_errors(connection):
        connection.ping()
    supervisor = Supervisor()
    supervisor.status(f"loading {model_dir.name}")
    began = time.monotonic()
    engine = load(model_dir)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    own = engine.card.name
    models = (own, settings.alias) if settings.alias not in {None, own} else (own,)
    _log.info(
        "loaded %s (version %s) on %s in %.1f s", own, engine.card.version, engine.device, time.monotonic() - began
    )
    scheduler = Scheduler(engine)
    watchdog = Watchdog(engine, device_timeout, lambda: scheduler.alive, supervisor.alive)
    watchdog.start()
    self_test(engine)
    publisher = Publisher(connection, settings.result_ttl)
    executor = Executor(
        connection, engine, scheduler, publisher,
        Lifecycle(connection, result_ttl=settings.result_ttl, conversation_ttl=settings.conversation_ttl),
        Identity(worker=name, device=engine.device, models=models), blob_ttl=settings.blob_ttl,
    )
    consumer = Consumer(
        [keys.queue(model) for model in models], executor, connection=connection, name=name,
        places=engine.slots + LOOK_AHEAD, drain_seconds=drain_seconds,
        announce=_announcer(engine, connection, name, scheduler, supervisor, settings.alias or ""),
    )
    scheduler.start()
    try:
        with server_errors(connection), connection.pipeline() as pipeline:
            for model in models:
                card = engine.card.model_copy(update={"name": model})
                pipeline.set(keys.model(model), encode(card), ex=_CARD_TTL)
                pipeline.sadd(keys.MODELS, model)
            pipeline.execute()
        _log.info("worker %s takes jobs for %s, %d at a time", name, " and ".join(models), engine.slots)
        supervisor.ready()
        consumer.work()
        if not consumer.stop_requested:
            raise SailqError("The worker's loop broke; its log says why.")
    finally:
        scheduler.close()
        publisher.close()
        watchdog.stop()
        with suppress(redis.RedisError):  # both age out
            connection.delete(keys.worker(name))
            connection.zrem(keys.WORKERS, name)


def _announcer(
    engine: Engine, connection: redis.Redis, name: str, scheduler: Scheduler, supervisor: Supervisor, alias: str
) -> Callable[[redis.client.Pipeline], None]:
    """What each beat says of this worker: its record, which expires when the beats stop."""
    clock = ServerClock(connection)
    record = {
        "name": name, "host": socket.gethostname(), "pid": os.getpid(), "model": engine.card.name,
        "model_version": engine.card.version, "alias": alias, "device": engine.device, "slots": engine.slots,
        "version": version("sailq"), "started": clock.now(), "model_loads": Engine.loads,
    }

    def announce(pipeline: redis.client.Pipeline) -> None:
        supervisor.beat(scheduler.running, engine.slots)
        now = clock.now()
        pipeline.hset(keys.worker(name), mapping={**record, "running": scheduler.running, "beat": now})
        pipeline.expire(keys.worker(name), RECORD_SECONDS)
        pipeline.zadd(keys.WORKERS, {name: now})
        pipeline.zremrangebyscore(keys.WORKERS, 0, now - RECORD_SECONDS)

    return announce
