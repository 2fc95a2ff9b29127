"""Receives one answer at a terminal: notes that no worker will give it, shows its text, and its timings."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sailq.shared import terminal

if TYPE_CHECKING:
    from sailq.shared.jobs import Result

    from ..client import Client

GRACE_SECONDS = 5.0
"""Seconds that a caller waits, after a job's deadline, for the worker to report it."""


class Printer(Protocol):
    """Prints an answer as it comes: `terminal.AnswerPrinter`, or another."""

    def thought(self, piece: str) -> None:
        """Print a piece of the thought before the answer."""

    def text(self, piece: str) -> None:
        """Print a piece of the answer."""


def receive(client: Client, job: str, printer: Printer | None = None, *, timeout: float | None = None) -> Result:
    """Waits for the job's result, and passes all of its text and thought to `printer` as they come.

    Cancels the job on Ctrl-C, and if nothing comes for `timeout` seconds.
    """
    from sailq.shared.errors import SailqError, WaitTimeout

    patience = None if timeout is None else timeout + GRACE_SECONDS
    shown = ""
    try:
        if printer is not None:
            for chunk in client.stream(job, patience):
                if chunk.restarted:
                    printer.text("\n")
                    shown = ""
                if chunk.reasoning:
                    printer.thought(chunk.reasoning)
                if chunk.text:
                    printer.text(chunk.text)
                    shown += chunk.text
        result = client.wait(job, patience)
    except (KeyboardInterrupt, WaitTimeout):
        with suppress(SailqError):
            client.cancel(job)
        raise
    if printer is not None and result.text != shown:
        printer.text(result.text.removeprefix(shown) if result.text.startswith(shown) else f"\n{result.text}")
    return result


def timings(result: Result) -> str:
    """A line with time to first token, tokens/s and total time. It begins with a warning if all tokens are of the
    thought."""
    said = []
    if result.reasoning and not result.text and result.finish_reason == "length":
        said.append("the thought took all tokens: see --max-new-tokens")
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
