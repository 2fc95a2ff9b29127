"""Receiving one answer at a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sailq.shared.jobs import Result

    from ..client import Client

GRACE_SECONDS = 5.0
"""How much longer than a job's own deadline its asker waits for the worker to say so."""


def receive(
    client: Client, job: str, *, timeout: float | None = None, show: Callable[[str], None] | None = None
) -> Result:
    """The job's result; its text goes to `show` as it comes, and all of it has gone there at the end.

    Ctrl-C, and a `timeout` (seconds) that nothing came in, cancel the job.
    """
    from sailq.shared.errors import SailqError, WaitTimeout

    patience = None if timeout is None else timeout + GRACE_SECONDS
    shown = ""
    try:
        if show is not None:
            for chunk in client.stream(job, patience):
                if chunk.restarted:
                    show("\n")
                    shown = ""
                show(chunk.text)
                shown += chunk.text
        result = client.wait(job, patience)
    except (KeyboardInterrupt, WaitTimeout):
        with suppress(SailqError):
            client.cancel(job)
        raise
    if show is not None and result.text != shown:
        show(result.text.removeprefix(shown) if result.text.startswith(shown) else f"\n{result.text}")
    return result
