"""What `rq info`, rq-dashboard and rq-exporter do when they look, over and over, by a clock that is off.

    python tests/looking_tools.py redis://… sailq-sailq-tiny -60

RQ asks `now` and `current_timestamp` alone for the time. The calls are those of rq.cli's `info`, of rq-dashboard's
`/api/queues`, `/api/jobs` and `/api/workers`, and of rq-exporter's collector.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
import rq.cli.helpers
import rq.utils
from click.testing import CliRunner
from rq import Queue, Worker
from rq.cli import main as rq_command
from rq.job import Job
from rq.registry import StartedJobRegistry, clean_registries
from sailq.shared.rqjob import Serializer

EVERY_SECONDS = 0.5


def put_off(seconds: int) -> None:
    """Makes RQ believe, in this process, that it is `seconds` later."""
    real_now = rq.utils.now
    later: dict[str, Callable[[], Any]] = {
        "now": lambda: real_now() + timedelta(seconds=seconds),
        "current_timestamp": lambda: int(time.time()) + seconds,
    }
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "rq":
            for function in later:
                if hasattr(module, function):
                    setattr(module, function, later[function])


def look(url: str, connection: redis.Redis, name: str) -> None:
    shown = CliRunner().invoke(rq_command, ["info", "--url", url, "--raw", name])
    assert shown.exit_code == 0, shown.output
    for queue in Queue.all(connection=connection, serializer=Serializer):
        clean_registries(queue)
        registries = (
            queue.started_job_registry, queue.finished_job_registry, queue.failed_job_registry,
            queue.deferred_job_registry, queue.scheduled_job_registry, queue.canceled_job_registry,
        )
        for registry in registries:
            assert registry.count >= 0
            Job.fetch_many(registry.get_job_ids(0, 20), connection=connection, serializer=Serializer)
        queue.get_jobs(0, 20)
        StartedJobRegistry(queue=queue).cleanup(timestamp=rq.utils.current_timestamp())
    for worker in Worker.all(connection=connection, serializer=Serializer):
        worker.get_state(), worker.get_current_job_id(), worker.queue_names()


def main() -> None:
    url, name, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    put_off(seconds)
    connection = redis.Redis.from_url(url)
    while True:
        look(url, connection, name)
        print("looked", flush=True)
        time.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    main()
