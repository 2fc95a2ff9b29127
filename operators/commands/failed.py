"""`sailq failed`: lists, retries and drops failed jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared.options import Json, RedisUrl

if TYPE_CHECKING:
    from rich.table import Table

    from sailq.shared.jobs import Result

    from ..failures import Failures

_PIPED_WIDTH = 1000

failed = typer.Typer(
    no_args_is_help=True,
    help="List, retry or drop jobs that failed for reasons outside the job.\n\n"
    "These are jobs whose worker died at each attempt, and jobs that ended with the error 'internal'. They and their "
    "clips are kept for a week. `sailq status` shows their number. Other errors, such as bad_media or too_long, would "
    "happen again. They are only in the job's result.",
)

Jobs = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", show_default=False, help="Ids of failed jobs.")]
All = Annotated[bool, typer.Option("--all", help="Take all failed jobs, or all of --model, instead of JOB.")]
ModelName = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this model's jobs.")]


@failed.command("list")
def list_jobs(json: Json = False, redis_url: RedisUrl = None, model: ModelName = None) -> None:
    """List the failed jobs, newest first. Changes nothing.

    With --json, each job has a history of its attempts: worker, start time and why the attempt ended.

    \b
    Examples:
      sailq failed list
      sailq failed list --json | jq -r '.[] | select(.history[-1].cause == "died") | .job'
    """
    from sailq.shared import terminal

    with terminal.command(json), _failures(redis_url) as failures:
        results = failures.results(model)
        if json:
            terminal.print_json([_as_json(result) for result in results])
            return
        import sys

        from rich.console import Console

        # Do not wrap lines when piped.
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(_table(results) if results else "no failed jobs")


@failed.command()
def retry(
    jobs: Jobs = None, every: All = False, json: Json = False, redis_url: RedisUrl = None, model: ModelName = None
) -> None:
    """Put failed jobs back on their queues. Each gets all its attempts again.

    A job keeps its id, turn and metadata. Its old result is deleted. A job whose
    clips or deadline have expired cannot be retried; the exit code is then 1.

    \b
    Examples:
      sailq failed retry --all
      sailq failed retry $(sailq failed list --json | jq -r '.[].job')
    """
    _each(lambda failures: failures.retry, "retried", jobs, every, json, redis_url, model)


@failed.command()
def drop(
    jobs: Jobs = None, every: All = False, json: Json = False, redis_url: RedisUrl = None, model: ModelName = None
) -> None:
    """Delete failed jobs and free their clips. They can no longer be retried.

    \b
    Examples:
      sailq failed drop --all --model sailq-tiny
    """
    _each(lambda failures: failures.drop, "dropped", jobs, every, json, redis_url, model)


def _each(
    action: Callable[[Failures], Callable[[str], None]], done: str,
    jobs: list[str] | None, every: bool, json: bool, redis_url: str | None, model: str | None,
) -> None:
    """Calls `action` for each job. A job that cannot be changed does not stop the others; the exit code is then 1."""
    import sys

    from sailq.shared import terminal

    with terminal.command(json):
        from sailq.shared.errors import BadRequest, SailqError, ServerUnavailable

        if bool(jobs) == every or (jobs and model):
            raise BadRequest("Name failed jobs, or give --all, with or without --model.")
        worked, refused = [], []
        with _failures(redis_url) as failures:
            for job in jobs or [result.job for result in failures.results(model)]:
                try:
                    action(failures)(job)
                    worked.append(job)
                except ServerUnavailable:
                    raise
                except SailqError as error:
                    refused.append({"job": job, "error": {"code": error.code, "message": str(error)}})
                    if not json:
                        print(f"sailq: {error}", file=sys.stderr)
        if json:
            terminal.print_json({done: worked, "refused": refused})
        else:
            print(f"{len(worked)} {done}")
    if refused:
        raise typer.Exit(terminal.FAILURE)


@contextmanager
def _failures(redis_url: str | None) -> Iterator[Failures]:
    from sailq.shared.connection import connect
    from sailq.shared.settings import load_settings

    from ..failures import Failures

    settings = load_settings(redis_url=redis_url)
    with connect(settings.redis_url) as connection:
        yield Failures(connection, settings)


def _as_json(result: Result) -> dict[str, Any]:
    said = result.model_dump(include={"job", "conversation", "turn", "model", "error", "history", "metadata"})
    return {"history": [], **said, "failed_at": result.finished_at}


def _table(results: list[Result]) -> Table:
    from datetime import datetime

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("job", no_wrap=True)
    for name in ("model", "conversation", "when"):
        table.add_column(name, overflow="fold")
    table.add_column("attempts", justify="right")
    table.add_column("cause", overflow="fold")
    for result in results:
        when = datetime.fromtimestamp(result.finished_at).strftime("%Y-%m-%d %H:%M:%S")
        cause = escape(result.error.message) if result.error is not None else ""
        table.add_row(result.job, result.model, result.conversation, when, str(len(result.history)), cause)
    return table
