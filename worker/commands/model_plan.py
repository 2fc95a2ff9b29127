"""`sailq model plan`: which configurations of a model fit a box, and how fast they would be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sailq.shared.options import Json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from ..planning.plan import Configuration, Workload
    from ..planning.timings import Timings


def plan(
    model: Annotated[
        str, typer.Option("--model", metavar="DIR|NAME", help="A checkpoint's directory, or a published model.")
    ] = "qwen2-vl-7b",
    clip: Annotated[
        str,
        typer.Option("--clip", metavar="FRAMESxHEIGHTxWIDTH", help="Frames of a clip as jobs ask for them, in pixels."),
    ] = "2x140x210",
    question: Annotated[
        int, typer.Option("--question", metavar="TOKENS", help="Tokens of the question alone.")
    ] = 5,
    answer: Annotated[int, typer.Option("--answer", metavar="TOKENS", help="Tokens of an answer.")] = 60,
    heaps: Annotated[
        str,
        typer.Option(
            "--heaps", metavar="NPU,VPU,VPP", show_default="this box's, or Sophgo's split 7615,2048,2048",
            help="The box's heaps in MB.",
        ),
    ] = "",
    vision_quantize: Annotated[
        str, typer.Option("--vision-quantize", metavar="f16|w8f16", help="Weights of the ViT, as compiled.")
    ] = "w8f16",
    json: Json = False,
) -> None:
    """Show which bmodels of a model fit a box, and how fast they would be. Compiles nothing.

    A bmodel's slots, context, prompt lengths and ViT sizes are fixed when it is
    compiled. This lists them for one kind of job: clips of one size, and answers
    of one length. Each line is the fastest bmodel with so many slots and such a
    context that fits the heaps. The first line makes the most captions.

    Rates add up the TPU compiler's estimates of the nets' times. Times and memory
    of sizes between compiled ones are interpolated. A net smaller than all that
    were compiled counts as the smallest of them. 5 % is subtracted for the time in
    which the device is assumed to wait for the host. All slots are taken.

    \b
    Examples:
      sailq model plan
      sailq model plan --clip 8x140x224 --answer 120
      sailq model plan --model /data/checkpoints/my-7b --heaps 7615,2048,4096
      sailq model plan --json | jq '.configurations[0]'
    """
    from dataclasses import asdict

    from sailq.shared import terminal
    from sailq.shared.errors import BadRequest
    from sailq.shared.media.sizing import clip_size

    from ..planning.models import find
    from ..planning.plan import configurations, workload

    with terminal.command(json):
        if vision_quantize not in ("f16", "w8f16"):
            raise BadRequest(f"--vision-quantize is f16 or w8f16, not {vision_quantize!r}.")
        sizes, source = _heaps(heaps)
        timings, family = find(model)
        work = workload(family, clip_size(clip), question, answer)
        found = configurations(timings, work, sizes, vision_quantize)
    compile_command = _compile(timings, model, found[0])
    if json:
        terminal.print_json({
            "model": timings.model, "compiler": timings.compiler, "job": asdict(work), "heaps": sizes,
            "heaps_from": source, **_assumed(), "configurations": [_as_json(one) for one in found],
            "compile": compile_command,
        })
        return
    _print(timings, work, sizes, source, found, compile_command)


def _heaps(given: str) -> tuple[dict[str, int], str]:
    """Bytes of each heap, and where they are from."""
    from pathlib import Path

    from sailq.shared.devices import is_box
    from sailq.shared.errors import BadRequest

    from ..doctor import ion_heaps

    root = Path("/")
    if given:
        sizes = given.split(",")
        if len(sizes) != len(ion_heaps.HEAPS) or not all(re.fullmatch("[0-9]{1,6}", size) for size in sizes):
            raise BadRequest(f"--heaps is NPU,VPU,VPP in MB, such as 7615,2048,2048, not {given!r}.")
        return {heap: int(size) * ion_heaps.MB for heap, size in zip(ion_heaps.HEAPS, sizes, strict=True)}, "--heaps"
    if is_box(root):
        try:
            return ion_heaps.read_heaps(root)
        except ion_heaps.Unreadable:
            pass
    return {heap: size * ion_heaps.MB for heap, size in ion_heaps.SPLITS[0].items()}, "Sophgo's recommended split"


def _assumed() -> dict[str, Any]:
    from ..planning.timings import CORE_RATIO, HOST_SHARE

    return {"assumed_host_share": HOST_SHARE, "assumed_core_ratio": CORE_RATIO}


def _compile(timings: Timings, model: str, best: Configuration) -> str:
    """The command that makes the configuration."""
    from pathlib import Path
    from shlex import quote

    sizes = best.sizes
    directory = Path(model).expanduser()
    shorter = [length for length in sizes.prompts if length < sizes.context]
    words = [
        "deploy/models/compile.sh",
        "--model_path", quote(str(directory)) if (directory / "config.json").is_file() else "CHECKPOINT",
        "--quantize", timings.quantize, "--lm_head_quantize", timings.lm_head_quantize,
        "--vision_quantize", sizes.vision_quantize, "--batch", f"{sizes.slots}", "--seq_length", f"{sizes.context}",
    ]
    if shorter:
        words += ["--prefill_lengths", ",".join(map(str, shorter))]
    words += ["--vision_seq_length", f"{sizes.patches[-1]}"]
    if len(sizes.patches) > 1:
        words += ["--vision_lengths", ",".join(map(str, sizes.patches[:-1]))]
    return " ".join(words)


def _as_json(one: Configuration) -> dict[str, Any]:
    from dataclasses import asdict

    memory = {"total": one.memory.total, **one.memory.kinds, "heaps": dict(one.memory.heaps)}
    return {**asdict(one.sizes), **asdict(one.rate), "memory": memory}


def _print(
    timings: Timings, work: Workload, heaps: Mapping[str, int], source: str, found: list[Configuration],
    compile_command: str,
) -> None:
    from sailq.shared import terminal

    from ..doctor.ion_heaps import MB
    from ..planning.memory import KINDS, SPARE
    from ..planning.timings import CORE_RATIO, HOST_SHARE

    console = terminal.console()
    split = ", ".join(f"{heap} {size // MB}" for heap, size in heaps.items())
    console.print(
        f"{timings.model}, {timings.quantize}, lm_head {timings.lm_head_quantize}, ViT "
        f"{found[0].sizes.vision_quantize}, on a BM1684X with heaps of {split} MB ({source}).\n"
        f"Jobs: {work.frames} frame{'s'[: work.frames > 1]} of {work.height} × {work.width}, "
        f"{work.grids} × {work.patches} patches, {work.vision_tokens} vision tokens; {work.prompt} tokens of prompt, "
        f"{work.answer} of answer.\n"
    )
    console.print(_table(found))
    best = found[0].memory
    kinds = ", ".join(f"{kind} {best.kinds[kind] // MB:,}" for kind in KINDS)
    used = ", ".join(f"{heap} {size // MB:,} of {heaps[heap] // MB:,}" for heap, size in best.heaps.items())
    console.print(
        f"\nThe first takes {best.total // MB:,} MB: {kinds}. In the heaps: {used}; {SPARE // MB} MB must stay free "
        f"for the worker's own tensors.\n\nRates: the compiler's estimate ({timings.compiler}) of the device, less "
        f"{HOST_SHARE:.0%} in which it is assumed to wait for the host, whose cores are assumed to be {CORE_RATIO} "
        f"times slower than an x86 core. A net smaller than all that were compiled counts as the smallest of them. All "
        f"slots are taken and jobs wait. captions/h is reached while launches of several prompts or grids are full. "
        f"With 64 slots they nearly always are. With 16 or fewer they are if answers have one length; else expect "
        f"nearly 'started alone'. The first token is of one job on an idle box, and of the device alone.\n"
    )
    console.print(compile_command, soft_wrap=True)  # in one line, so that it can be copied


def _table(found: list[Configuration]) -> Table:
    from rich.table import Table

    from ..doctor.ion_heaps import MB

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # with short headers, it fits 80 columns
    speeds = ("captions\n/h", "started\nalone", "tokens/s\ndecoding", "step,\nms", "first\ntoken,\ns")
    for column in ("slots", "context", "prompts", "ViT", *speeds, "MB"):
        table.add_column(column, justify="right", overflow="fold")
    for one in found:
        sizes, rate = one.sizes, one.rate
        table.add_row(
            f"{sizes.slots}", f"{sizes.context}", ",".join(map(str, sizes.prompts)), ",".join(map(str, sizes.patches)),
            f"{rate.captions_per_hour:,.0f}", f"{rate.captions_alone:,.0f}",
            f"{rate.tokens_per_second:.1f}", f"{1000 * rate.step:.0f}",
            f"{rate.first_token:.3f}", f"{one.memory.total // MB:,}",
        )
    return table
