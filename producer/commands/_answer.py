"""Receives one answer at a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sailq.shared.jobs import Result

    from ..client import Client

GRACE_SECONDS = 5.0
"""Seconds that a caller waits, after a job's deadline, for the worker to report it."""


def receive(
    client: Client, job: str, *, timeout: float | None = None, show: Callable[[str], None] | None = None
) -> Result:
    """Waits for the job's result, and passes all of its text to `show` as it comes.

    Cancels the job on Ctrl-C, and if nothing comes for `timeout` seconds.
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
