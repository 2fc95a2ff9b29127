"""Qwen2-VL-7B INT4 on a BM1684X, by the compiler's estimate, beside what sophon-demo measured: `make bench-tpu`.

    python -m tests.bench.bm1684x --out bench-out

Times the nets (see tpu_nets.py), writes bm1684x.json beside this file, prints the tables, draws DIR/bm1684x.png, and
exits with 1 where a bound is missed. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from deploy.models.exit_codes import run
from tests.bench.timings import HEAP, LM_HEAD, QUANTIZE, RECORDED, Net, Timings, markdown, rate

COMMAND = "make bench-tpu"
BATCHES = (1, 2, 4, 8, 16, 32)
CONTEXT = 512
PATCHES, PROMPT, CAPTION = 160, 96, 60
"""sophon-demo's clip: 2 frames of 140 x 224 are one grid of 10 x 16 patches; with its question about 80 tokens, which
run at 96. Tokens of a caption."""
NETS = (
    Net("vit", PATCHES), Net("block", PROMPT), Net("block_cache", 1536),
    *(Net("block_cache", CONTEXT, batch) for batch in BATCHES),
    *(Net(net, 0, batch) for net in ("lm_head", "greedy_head") for batch in BATCHES),
)


class PublishedSpeed(NamedTuple):
    """A row of sophon-demo's table (github.com/sophgo/sophon-demo, sample/Qwen2-VL), an SE7-32 with 7B INT4."""

    context: int
    first_token: float  # seconds, with what the host does
    tokens_per_second: float


PUBLISHED = (PublishedSpeed(512, 3.55, 9.67), PublishedSpeed(1536, 6.08, 9.19))


class Row(NamedTuple):
    """A figure that must hold."""

    what: str
    estimate: float
    bound: float
    published: str
    most: bool = False  # whether the bound is a maximum, not a minimum

    @property
    def met(self) -> bool:
        return self.estimate <= self.bound if self.most else self.estimate >= self.bound


def captions_per_hour(timings: Timings, batch: int) -> float:
    return 3.6e6 / timings.caption(PATCHES, PROMPT, batch, CONTEXT, CAPTION)


def fitting(timings: Timings) -> list[int]:
    """The batches that leave a tenth of the heap to commands and to what lies between layers."""
    return [batch for batch in BATCHES if timings.memory(batch, CONTEXT) <= 0.9 * HEAP]


def rows(timings: Timings) -> list[Row]:
    """Every figure that is held to a bound."""
    published = PUBLISHED[0]
    one, eight, sixteen = (rate(timings.step(batch, CONTEXT), batch) for batch in (1, 8, 16))
    alone = 3600 / (published.first_token + (CAPTION - 1) / published.tokens_per_second)
    best = max(fitting(timings), key=lambda batch: captions_per_hour(timings, batch))
    measured = f"{published.tokens_per_second} (batch 1)"
    return [
        Row("one stream, tokens/s", one, 12.5, f"{published.tokens_per_second}"),
        Row("batch 8, tokens/s of all", eight, 80, measured),
        Row("batch 16, tokens/s of all", sixteen, 120, measured),
        Row("first token of the clip, s", timings.first_token(PATCHES, PROMPT, 1) / 1000, 0.30,
            f"{published.first_token} (with host work)", most=True),
        Row(f"captions an hour, batch {best}", captions_per_hour(timings, best), 5000, f"{alone:.0f} (by its figures)"),
    ]


def tables(timings: Timings) -> str:
    """What is printed."""
    beside = [
        (f"{row.context}", f"{row.first_token:.2f}", f"{timings.first_token(PATCHES, PROMPT, 1) / 1000:.2f}",
         f"{row.tokens_per_second}", f"{rate(timings.step(1, row.context)):.1f}")
        for row in PUBLISHED
    ]
    by_batch = [
        (f"{batch}", f"{timings.step(batch, CONTEXT):.1f}", f"{rate(timings.step(batch, CONTEXT), batch):.1f}",
         f"{timings.first_token(PATCHES, PROMPT, batch):.0f}", f"{captions_per_hour(timings, batch):.0f}",
         f"{timings.memory(batch, CONTEXT) / 1000:.1f}")
        for batch in BATCHES
    ]
    held = [
        (row.what, f"{row.estimate:.4g}", f"{'≤' if row.most else '≥'} {row.bound:g}", row.published,
         "yes" if row.met else "MISSED")
        for row in rows(timings)
    ]
    return "\n\n".join([
        f"Qwen2-VL-7B INT4 ({QUANTIZE}, lm_head {LM_HEAD}) on a BM1684X: the compiler's estimate ({timings.compiler}), "
        f"of the device alone; printed by `{COMMAND}`.",
        markdown(("context", "first token, published, s", "the compiler's estimate, s", "tokens/s, published",
                  "the compiler's estimate"), beside),
        f"By the compiler's estimate, at context {CONTEXT}; sophon-demo's clip, captions of {CAPTION} tokens; an SE7's "
        f"heap has {HEAP / 1000:.1f} GB:",
        markdown(("batch", "step, ms", "tokens/s", "first token, ms", "captions an hour", "memory, GB"), by_batch),
        "Bounds on the compiler's estimate:",
        markdown(("figure", "the compiler's estimate", "bound", "published, SE7-32", "holds"), held),
    ])


def draw(timings: Timings, path: Path) -> None:
    """Tokens a second and captions an hour by batch, beside the published ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle("Qwen2-VL-7B INT4 on a BM1684X, context 512: the compiler's estimate")
    names = [f"{batch}" for batch in BATCHES]
    published = PUBLISHED[0]
    alone = 3600 / (published.first_token + (CAPTION - 1) / published.tokens_per_second)
    for axes, title, values, measured in (
        (figure.add_subplot(1, 2, 1), "tokens/s of all slots",
         [rate(timings.step(batch, CONTEXT), batch) for batch in BATCHES], published.tokens_per_second),
        (figure.add_subplot(1, 2, 2), f"captions of {CAPTION} tokens an hour",
         [captions_per_hour(timings, batch) for batch in BATCHES], alone),
    ):
        axes.bar_label(axes.bar(names, values, color="tab:blue"), fmt="%.0f")
        axes.axhline(measured, color="tab:red", label=f"published, batch 1: {measured:.3g}")
        axes.set(title=title, xlabel="batch")
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def measure(out: Path) -> None:
    """Time the nets, and write, print and draw what comes of it.

    Raises:
        BenchError: a net cannot be timed, or a bound is missed.
    """
    # Imported here because it imports torch, which is not needed to read the timings.
    from tests.bench.tpu_nets import Bench, BenchError, compiler

    timings = Timings(compiler(), Bench(out / "bm1684x").time(NETS))
    timings.save(RECORDED)
    print(tables(timings))
    draw(timings, out / "bm1684x.png")
    print(f"\nWritten: {RECORDED}, {out / 'bm1684x.png'}")
    missed = [row.what for row in rows(timings) if not row.met]
    if missed:
        raise BenchError(f"by the compiler's estimate these miss their bounds: {'; '.join(missed)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), metavar="DIR",
                        help="folder for the plot and for what is kept of each net; default: %(default)s")
    out = parser.parse_args().out.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up, like Ctrl-C
    return run("bm1684x", lambda: measure(out), f"`{COMMAND}` goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
