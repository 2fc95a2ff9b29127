"""Compares this machine's clock with the server's."""

from __future__ import annotations

import time

from sailq.shared.checks import Plan, Verdict, ok, wrong
from sailq.shared.connection import connect, server_errors

_MOST_SECONDS = 3.0
_SETS_IT = "sudo timedatectl set-ntp true"


def clock(plan: Plan) -> Verdict:
    """Checks that the clocks differ by at most `_MOST_SECONDS`.

    Leases use the server's clock only. Deadlines and waits use it too, but a machine computes it from its own clock and
    an offset that it reads once a minute: while its own clock is being corrected, a job may miss its deadline. A wrong
    clock also puts wrong times into logs and RQ's list of workers, and rejects valid certificates.
    """
    with connect(plan.redis_url, retries=0) as connection, server_errors(connection):
        connection.ping()  # connects, so that the time to connect is not measured
        before = time.time()
        seconds, microseconds = connection.time()
        after = time.time()
    off = (before + after) / 2 - (seconds + microseconds / 1e6)
    unsure = (after - before) / 2
    if abs(off) - unsure <= _MOST_SECONDS:
        return ok(f"{abs(off):.1f} s off the server's" if abs(off) >= 0.1 else "as the server's")
    return wrong(
        f"{_span(abs(off))} {'ahead of' if off > 0 else 'behind'} the server's; the limit is {_MOST_SECONDS:g} s. "
        "When it is corrected, jobs miss their deadlines. If other machines report the same, the server's clock is "
        "wrong.",
        _SETS_IT,
    )


def _span(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.1f} s"
