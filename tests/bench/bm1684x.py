"""Models in INT4 on a BM1684X, by the compiler's estimate, beside what sophon-demo measured: `make bench-tpu`.

    python -m tests.bench.bm1684x --out bench-out
    python -m tests.bench.bm1684x --out bench-out --model qwen2-vl-2b

Times the nets of each model (see tpu_nets.py), writes worker/planning/bm1684x/MODEL.json, prints the tables, draws
DIR/MODEL.png for Qwen2-VL, and exits with 1 where a bound is missed. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.models.exit_codes import run
from sailq.producer.bench import PublishedFigures
from sailq.shared.errors import SailqError
from sailq.worker.doctor.ion_heaps import MB, SPLITS
from sailq.worker.planning.models import find
from sailq.worker.planning.plan import QUESTION, Configuration, Workload, configurations, workload
from sailq.worker.planning.timings import CORE_RATIO, HOST_SHARE, RECORDED, Net, Timings
from tests.bench.markdown import markdown

COMMAND = "make bench-tpu"
MODEL = "qwen2-vl-7b"
VISIONS = ("w8f16", "f16")
"""Weights of the ViT."""
SLOTS = (1, 8, 16, 32, 64)
CONTEXTS = (256, 512)
SAMPLE, CAPTION = (2, 140, 210), 60
"""sophon-demo's clip: frames, height, width. Tokens of a caption."""
CLIPS = (SAMPLE, (8, 140, 224), (16, 140, 224), (8, 280, 448), (16, 280, 448))
ANSWERS = (CAPTION, 120)
SE7 = {heap: size * MB for heap, size in SPLITS[0].items()}
"""The heaps of an SE7, split as Sophgo recommends, bytes."""
PUBLISHED = PublishedFigures()
"""Of one slot at context 512. The first token includes what the host does."""
NETS = (
    *(Net("vit", patches, 1, quantize) for quantize in ("f16", "w8f16") for patches in (160, 320, 640, 1024, 1280)),
    *(Net("block", tokens) for tokens in (80, 96, 128, 160, 192, 320, 512, 672, 1536)),
    *(Net("block_cache", context, slots) for context in CONTEXTS for slots in SLOTS), Net("block_cache", 320, 64),
    *(Net("block_cache", 1536, slots) for slots in (1, 8, 16, 32)),
    *(Net(net, 0, slots) for net in ("lm_head", "greedy_head") for slots in SLOTS),
)
"""Of a Qwen2-VL, whose captions an hour are planned from them."""
STREAM, MANY = (1, 2048), (16, 512)
"""Slots and context of the newer models' published figures, and of many clips."""
NEWER_NETS = (
    Net("vit", 1024, 1, "w8f16"), Net("block", 512), Net("block_cache", 2048, 1), Net("block_cache", 512, 16),
    *(Net(net, 0, slots) for net in ("lm_head", "greedy_head") for slots in (1, 16)),
)
NEWER: Mapping[str, float] = {"qwen2.5-vl-7b": 8.02, "qwen3-vl-4b": 10.72, "qwen3-vl-8b": 6.64}
"""Tokens a second that sophon-demo measured on an SE7-32, INT4, one stream, context 2048."""
MODELS = ("qwen2-vl-7b", *NEWER)
"""Those of `make bench-tpu`."""


class Row(NamedTuple):
    """A figure that must hold."""

    what: str
    estimate: float
    bound: float
    published: str = ""
    most: bool = False  # whether the bound is a maximum, not a minimum

    @property
    def met(self) -> bool:
        return self.estimate <= self.bound if self.most else self.estimate >= self.bound


def tokens_per_second(timings: Timings, slots: int, context: int) -> float:
    """Of all slots, on the device alone."""
    return 1000 * slots / timings.step(slots, context)


def job(clip: tuple[int, int, int], answer: int = CAPTION) -> Workload:
    """sophon-demo's question about a clip of these frames, height and width."""
    return workload(find(MODEL)[1], clip, QUESTION, answer)


def best(timings: Timings, work: Workload, visions: Sequence[str] = VISIONS) -> Configuration:
    """The fastest configuration that fits an SE7. Raises SailqError if none does, or none was timed."""
    found, reasons = [], []
    for vision in visions:
        try:
            found.append(configurations(timings, work, SE7, vision)[0])
        except SailqError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return max(found, key=lambda one: one.rate.captions_per_hour)


def rows(timings: Timings) -> list[Row]:
    """Every figure of the 7B model that is held to a bound."""
    alone = 3600 / (PUBLISHED.first_token_latency + (CAPTION - 1) / PUBLISHED.tokens_per_second)
    measured = f"{PUBLISHED.tokens_per_second} (1 slot)"
    sample = best(timings, job(SAMPLE))
    steps = (
        (1, 512, 12.5), (8, 512, 80.0), (16, 512, 120.0), (64, 512, 270.0), (64, 256, 350.0),
    )
    return [
        *(Row(f"{slots} slots at context {context}, tokens/s of all", tokens_per_second(timings, slots, context), bound,
              measured) for slots, context, bound in steps),
        Row("first token of the sample clip, s", sample.rate.first_token, 0.16,
            f"{PUBLISHED.first_token_latency} (with host work)", most=True),
        Row("sample clip, captions an hour", sample.rate.captions_per_hour, 11_000, f"{alone:.0f} (by its figures)"),
        Row("8 frames of 140 × 224, captions an hour", best(timings, job(CLIPS[1])).rate.captions_per_hour, 6_000),
    ]


def newer_rows(timings: Timings) -> list[Row]:
    """Every figure of a newer model that is held to a bound."""
    published = NEWER[timings.model]
    measured = f"{published} (1 slot, context {STREAM[1]})"
    return [
        Row(f"{slots} slot{'s'[: slots > 1]} at context {context}, tokens/s of all",
            tokens_per_second(timings, slots, context), bound, measured)
        for (slots, context), bound in ((STREAM, published), (MANY, 10 * published))
    ]


def newer_tables(timings: Timings) -> str:
    """What is printed for a newer model."""
    parts = [
        f"{timings.model}, INT4 ({timings.quantize}, lm_head {timings.lm_head_quantize}) on a BM1684X: the compiler's "
        f"estimate ({timings.compiler}) of the device alone; printed by `{COMMAND}`:",
        markdown(("net", "ms"), [(f"{net}", f"{timing.milliseconds:.3f}") for net, timing in timings.nets.items()]),
        "Bounds on the compiler's estimate:", _held(newer_rows(timings)),
    ]
    return "\n\n".join(parts)


def _held(rows: Sequence[Row]) -> str:
    return markdown(("figure", "the compiler's estimate", "bound", "published, SE7-32", "holds"), [
        (row.what, f"{row.estimate:.4g}", f"{'≤' if row.most else '≥'} {row.bound:g}", row.published,
         "yes" if row.met else "MISSED")
        for row in rows
    ])


def tables(timings: Timings) -> str:
    """What is printed for a Qwen2-VL."""
    heaps = ", ".join(f"{heap} {size}" for heap, size in SPLITS[0].items())
    columns = [f"context {context}: {what}" for context in CONTEXTS for what in ("step, ms", "tokens/s")]
    by_slots = [
        (f"{slots}", *(f"{number:.1f}" for context in CONTEXTS for number in (
            timings.step(slots, context), tokens_per_second(timings, slots, context))))
        for slots in SLOTS
    ]
    parts = [
        f"{timings.model}, INT4 ({timings.quantize}, lm_head {timings.lm_head_quantize}) on a BM1684X: the compiler's "
        f"estimate ({timings.compiler}); printed by `{command(timings)}`. Of the device alone:",
        markdown(("slots", *columns), by_slots),
        f"The best configuration that fits an SE7 ({heaps} MB), by the compiler's estimate, less {HOST_SHARE:.0%} in "
        f"which the device is assumed to wait for the host, whose cores are assumed to be {CORE_RATIO} times slower "
        f"than an x86 core. The first token is of one job on an idle box, and of the device alone:",
        markdown(("clip", "answer", "slots", "context", "prompts", "ViT", *(f"captions an hour, ViT in {vision}"
                  for vision in VISIONS), "tokens/s", "first token, s", "memory, MB"),
                 [_job_row(timings, clip, answer) for clip in CLIPS for answer in ANSWERS]),
    ]
    if timings.model == MODEL:
        parts += ["Bounds on the compiler's estimate (captions: less the host's share):", _held(rows(timings))]
    return "\n\n".join(parts)


def _job_row(timings: Timings, clip: tuple[int, int, int], answer: int) -> tuple[str, ...]:
    work = job(clip, answer)
    head = f"{work.frames} frames of {work.height} × {work.width}", f"{answer}"
    captions = []
    for vision in VISIONS:
        try:
            captions.append(f"{best(timings, work, [vision]).rate.captions_per_hour:,.0f}")
        except SailqError:
            captions.append("not timed")
    try:
        found = best(timings, work)
    except SailqError:
        return *head, *["-"] * 4, *captions, *["-"] * 3
    sizes, rate = found.sizes, found.rate
    return (
        *head, f"{sizes.slots}", f"{sizes.context}", ", ".join(map(str, sizes.prompts)),
        ", ".join(map(str, sizes.patches)), *captions,
        f"{rate.tokens_per_second:.0f}", f"{rate.first_token:.3f}", f"{found.memory.total // MB:,}",
    )


def command(timings: Timings) -> str:
    """What prints the tables."""
    return COMMAND if timings.model == MODEL else f"python -m tests.bench.bm1684x --model {timings.model}"


def draw(timings: Timings, path: Path) -> None:
    """Tokens a second by slots, and captions an hour by clip, beside the published ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"{timings.model} INT4 on a BM1684X: the compiler's estimate")
    tokens = figure.add_subplot(1, 2, 1, title="tokens/s of all slots", xlabel="slots")
    for context in CONTEXTS:
        rates = [tokens_per_second(timings, slots, context) for slots in SLOTS]
        tokens.plot(SLOTS, rates, "o-", label=f"context {context}")
    tokens.axhline(PUBLISHED.tokens_per_second, color="tab:red", label=f"published: {PUBLISHED.tokens_per_second}")
    tokens.legend()
    captions = figure.add_subplot(1, 2, 2, title=f"captions of {CAPTION} tokens an hour")
    works = [job(clip) for clip in CLIPS]
    names = [f"{work.frames} ×\n{work.height} × {work.width}" for work in works]
    values = [_captions(timings, work) for work in works]
    captions.bar_label(captions.bar(names, values, color="tab:blue"), fmt="%.0f")
    for axes in (tokens, captions):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _captions(timings: Timings, work: Workload) -> float:
    """An hour; 0 if it was not timed."""
    try:
        return best(timings, work).rate.captions_per_hour
    except SailqError:
        return 0.0


def measure(models: Sequence[str], out: Path) -> None:
    """Time the nets of models, and write, print and draw the results.

    Raises:
        BenchError: a net cannot be timed, or a bound is missed.
    """
    # Imported here because it imports torch, which is not needed to read the timings.
    from tests.bench.tpu_nets import CONFIGS, LM_HEAD, QUANTIZE, Bench, BenchError, compiler

    missed = []
    for model in models:
        nets = Bench(out / model, CONFIGS[model]).time(NEWER_NETS if model in NEWER else NETS)
        timings = Timings(model, compiler(), QUANTIZE, LM_HEAD, CONFIGS[model], nets)
        recorded, plot = RECORDED / f"{model}.json", out / f"{model}.png"
        timings.save(recorded)
        if model in NEWER:
            print(f"{newer_tables(timings)}\n\nWritten: {recorded}\n")
        else:
            draw(timings, plot)
            print(f"{tables(timings)}\n\nWritten: {recorded}, {plot}\n")
        held = newer_rows(timings) if model in NEWER else rows(timings) if model == MODEL else []
        missed += [f"{model}: {row.what}" for row in held if not row.met]
    if missed:
        raise BenchError(f"by the compiler's estimate these miss their bounds: {'; '.join(missed)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=(*MODELS, "qwen2-vl-2b"), metavar="MODEL",
                        help=f"whose nets are timed, one of %(choices)s; repeatable; default: {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), metavar="DIR",
                        help="folder for the plot and for what is kept of each net; default: %(default)s")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up, like Ctrl-C
    return run("bm1684x", lambda: measure(given.model or MODELS, given.out.absolute()),
               f"`{COMMAND}` goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
