"""Gives every target (targets.py) many inputs, and says which one breaks the contract.

The contract: an error of sailq's or none, within 1 s, and no allocation beyond 256 MB more than the process began with.
Inputs are mutations of the corpus, the same for the same seed. One that gets an answer of a new kind is mutated
further, and with --keep joins the corpus.

    python tests/fuzz/fuzz.py [--inputs N] [--seed N] [--keep] [TARGET ...]
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import logging
import os
import random
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
from mutation import mutated
from targets import TARGETS, Target, without_media

CORPUS = Path(__file__).parent / "corpus"
MAX_SECONDS = 1.0
MAX_MEMORY = 256 * 1024 * 1024
_HANG_SECONDS = 60
_MAX_KEPT = 150
"""Inputs that a target's corpus grows to, at most."""
_KEPT = re.compile("[0-9a-f]{16}")
"""Names of inputs that a run has kept; seeds.py gives names that mean something."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=2_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="add inputs that get an answer of a new kind to the corpus")
    arguments = parser.parse_args()
    logging.disable()
    cv2.setNumThreads(1)
    shares = sum(TARGETS[name].share for name in arguments.targets)
    began, total, most = time.monotonic(), 0, 0
    with without_media():
        for name in arguments.targets:
            count = -(-arguments.inputs * TARGETS[name].share // shares)
            most = max(most, fuzz(name, count, arguments.seed, arguments.keep))
            total += count
    print(f"figure: fuzzing, all: {total} inputs in {time.monotonic() - began:.0f} s, {most / 1e6:.0f} MB more at most")
    return 0


def fuzz(name: str, count: int, seed: int, keep: bool) -> int:
    """Gives `count` inputs to a target; returns by how many bytes the process grew. Ends the process at a fault."""
    target, folder = TARGETS[name], CORPUS / name
    paths = sorted(folder.iterdir())
    good = [path.read_bytes() for path in paths if not _KEPT.fullmatch(path.name)]
    corpus = [path.read_bytes() for path in paths]
    chance, answers = random.Random(f"{seed} {name}"), set[str]()
    refused, slowest, before, began = 0, 0.0, _peak(), time.monotonic()
    first = list(corpus)
    with _limited_memory():
        for number in range(count):
            if number % 10_000 == 0:
                faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True, file=sys.stdout)
            if number < len(first):
                data = first[number]
            else:  # half of them start from valid inputs, because most of the corpus is invalid in its outermost bytes
                data = mutated(chance.choice(chance.choice((good, corpus))), corpus, target.form, chance)
            answer, seconds = _answer(target, data)
            slowest = max(slowest, seconds)
            if answer.startswith("fault"):
                path = Path(f"{name}-{_name(data)}")
                path.write_bytes(data)
                print(f"{name}, input {number} of seed {seed}, kept as {path}: {answer}")
                sys.exit(1)
            refused += answer != "taken"
            if answer not in answers:
                answers.add(answer)
                if number >= len(first) and len(corpus) < _MAX_KEPT:
                    corpus.append(data)
                    if keep:
                        (folder / _name(data)).write_bytes(data)
    faulthandler.cancel_dump_traceback_later()
    grown = _peak() - before
    print(
        f"figure: fuzzing {name}: {count} inputs in {time.monotonic() - began:.0f} s, {refused} refused, all with "
        f"typed errors of {len(answers)} kinds; slowest {slowest * 1e3:.0f} ms, memory grew by {grown / 1e6:.0f} MB",
        flush=True,
    )
    return grown


def _answer(target: Target, data: bytes) -> tuple[str, float]:
    """(what kind of answer an input gets, seconds); the kind of a fault begins with "fault"."""
    began = time.perf_counter()
    try:
        target.run(data)
        answer = "taken"
    except target.errors as error:
        answer = _kind(error)
        if _for_want_of_memory(error):
            answer = f"fault: it asks for more than {MAX_MEMORY >> 20} MB\n{traceback.format_exc()}"
    except BaseException:
        answer = f"fault: {traceback.format_exc()}"
    seconds = time.perf_counter() - began
    if seconds > MAX_SECONDS:
        answer = f"fault: it takes {seconds:.1f} s"
    return answer, seconds


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _kind(error: BaseException) -> str:
    """The error's sentence up to what the input has put into it, without the field's name before it."""
    said = re.sub(r"\d+", "0", str(error))
    return f"{type(error).__name__}: {re.match(r'(?:[^ ]+: )?([a-zA-Z0 ,.]*)', said)[1]}"  # type: ignore[index]


def _for_want_of_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__context__
    return error is not None


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Limits the growth of the process to `MAX_MEMORY` within its block."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_MEMORY, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)


def _peak() -> int:
    """The peak memory of the process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    # libjpeg reports each truncated JPEG on stderr.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(main())
