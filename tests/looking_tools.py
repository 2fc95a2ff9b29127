"""What RQ's tools do when they look, over and over, by a clock that is off. Runs in an environment of the tools' own.

    python tests/looking_tools.py rq redis://… sailq3-sailq-tiny -60

`rq` is `rq info`, the registries' clean-up that any program may ask for, and the JSON behind rq-dashboard's pages;
`exporter` is rq-exporter's collector, with the RQ 2 that it needs. RQ learns the time by its own `now` and
`current_timestamp` alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
import rq.registry
import rq.utils
from rq import Queue, Worker

EVERY_SECONDS = 0.5
REGISTRIES = ("queued", "started", "finished", "failed", "deferred", "scheduled", "canceled")

PACKAGES = {"rq": ("rq>=3.0,<3.1", "rq-dashboard==0.9.0", "six"), "exporter": ("rq-exporter==3.1.0",)}
"""What each needs. rq-dashboard imports six and does not say so."""


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


def rq_and_dashboard(url: str, connection: redis.Redis, name: str) -> Callable[[], None]:
    import rq_dashboard.web
    from click.testing import CliRunner
    from flask import Flask
    from rq.cli import main as command

    app = Flask(__name__)
    app.config.from_object("rq_dashboard.default_settings")
    app.config["RQ_DASHBOARD_REDIS_URL"] = [url]
    rq_dashboard.web.from_url = lambda *rest, **more: (None, connection)  # RQ's own option supports no Unix sockets
    app.register_blueprint(rq_dashboard.web.blueprint)
    pages = ["queues.json", "workers.json", *(f"jobs/{name}/{registry}/20/asc/1.json" for registry in REGISTRIES)]

    def look() -> None:
        shown = CliRunner().invoke(command, ["info", "--url", url, "--raw"])
        assert shown.exit_code == 0, shown.output
        for queue in Queue.all(connection=connection):
            rq.registry.clean_registries(queue)
            for registry in REGISTRIES[1:]:
                found = getattr(queue, f"{registry}_job_registry")
                assert found.count >= len(found.get_job_ids(0, 0))
            queue.started_job_registry.cleanup(timestamp=rq.utils.current_timestamp())
        for page in pages:
            assert app.test_client().get(f"/0/data/{page}").status_code == 200, page

    return look


def exporter(url: str, connection: redis.Redis, name: str) -> Callable[[], None]:
    from rq_exporter.collector import RQCollector

    collector = RQCollector(connection, Worker, Queue)

    def look() -> None:
        families = {family.name: family for family in collector.collect()}
        assert name in {sample.labels["queue"] for sample in families["rq_jobs"].samples}
        for queue in Queue.all(connection=connection):
            assert queue.started_job_registry.count >= 0

    return look


def main() -> None:
    tool, url, name, seconds = sys.argv[1:]
    put_off(int(seconds))
    connection = redis.Redis.from_url(url)
    look = {"rq": rq_and_dashboard, "exporter": exporter}[tool](url, connection, name)
    while True:
        look()
        print("looked", flush=True)
        time.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    main()
