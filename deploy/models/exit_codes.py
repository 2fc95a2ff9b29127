"""The exit codes of this folder's commands."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Failure(Exception):
    """A command failed. The message is one sentence for the user."""


def run(command: str, work: Callable[[], None], interrupted: str) -> int:
    """Run a command's work and return its exit code.

    0: success. 1: failure, with one sentence on stderr. 130: it was interrupted, and `interrupted` is printed, which
    says in what state the files are.
    """
    try:
        work()
    except (Failure, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0
