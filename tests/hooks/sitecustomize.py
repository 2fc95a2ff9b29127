"""Python imports this when it starts, in every process that a test starts: see `no_thread_dies` in conftest.py."""

from __future__ import annotations

import os
import threading
import traceback

REPORTS = os.environ.get("TESTS_THREAD_ERRORS")


def report(failure: threading.ExceptHookArgs) -> None:
    """Writes the traceback to the file that the test reads, and to stderr as Python does."""
    if failure.exc_type is not SystemExit and REPORTS:
        name = failure.thread.name if failure.thread else "a thread"
        lines = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
        with open(REPORTS, "a", encoding="utf-8") as reports:
            reports.write(f"{name} of process {os.getpid()}: {''.join(lines)}\n")
    threading.__excepthook__(failure)


threading.excepthook = report
