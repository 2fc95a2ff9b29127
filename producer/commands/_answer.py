"""Receives one answer at a terminal: notes that no worker will give it, shows its text, and its timings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from sailq.shared import terminal

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


def timings(result: Result) -> str:
    """A line with time to first token, tokens/s and total time."""
    said = []
    if result.timings.time_to_first_token is not None:
        said.append(f"first token after {result.timings.time_to_first_token:.2f} s")
    if result.tokens_per_second is not None:
        said.append(f"{result.tokens_per_second:.0f} tokens/s")
    said.append(f"{result.usage.completion_tokens} tokens")
    if result.timings.end_to_end is not None:
        said.append(f"{result.timings.end_to_end:.2f} s in all")
    return ", ".join(said)


def check_served(client: Client, model: str) -> None:
    """Prints a note if no worker serves `model` yet. Raises Unsupported if all workers serve other models."""
    from sailq.shared.errors import Unsupported
    from sailq.shared.workers import live_workers

    served = sorted({name for worker in live_workers(client.connection) for name in worker.names})
    if model in served:
        return
    if served and client.card(model) is None:
        raise Unsupported(f"No worker has ever served {model!r}; workers now serve {', '.join(served)}.")
    terminal.note(f"no worker serves {model} yet; waiting")
