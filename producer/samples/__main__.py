"""`python -m sailq.producer.samples`: writes sample clips and images with their true answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .dataset import TASKS, TRAINING_SEED, SampleError, write_samples

_ABOUT = f"""\
Render clips and images of coloured shapes, with questions and their true answers.

DIR gets clips/*.mp4, images/*.png and truth.jsonl, one row a sample:
  {{"task": ..., "lang": "en" or "zh", "messages": [...], "answer": ...}}
Tasks ({", ".join(TASKS)}) and languages take turns: any 20 rows in a row
hold all of them. The same seed gives the same samples, whatever the count.
sailq-tiny never saw seeds below {TRAINING_SEED}.
"""


def main(argv: list[str] | None = None) -> int:
    """Write the samples that the command line asks for. Returns 0, or 1 if a sample could not be written."""
    parser = argparse.ArgumentParser(
        prog="python -m sailq.producer.samples",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m sailq.producer.samples --seed 7 --count 20 --out samples",
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the samples, 0 or more (default 7)")
    parser.add_argument("--count", type=int, default=20, help="number of samples, 1 or more (default 20)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to, made if missing")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, not {args.seed}")
    if args.count < 1:
        parser.error(f"--count must be 1 or more, not {args.count}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, and {args.out} is a file")
    live = sys.stderr.isatty()
    try:
        for done, _ in enumerate(write_samples(args.seed, args.count, args.out), 1):
            if live:
                print(f"\r{done} of {args.count} samples", end="", file=sys.stderr, flush=True)
    except SampleError as error:
        print(f"\nerror: {error}" if live else f"error: {error}", file=sys.stderr)
        return 1
    if live:
        print(file=sys.stderr)
    print(args.out / "truth.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
