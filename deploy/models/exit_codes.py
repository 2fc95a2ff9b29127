"""How the commands of this folder end."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Failure(Exception):
    """What keeps a command from its work, in one sentence for whoever asked for it."""


def run(command: str, work: Callable[[], None], interrupted: str) -> int:
    """Do a command's work; its exit code.

    0; 1 where it failed, with one sentence on stderr; 130 where it was interrupted, with what `interrupted` says of
    how things are then.
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
