"""Which configurations of a model fit a box, and how many captions an hour they would make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from sailq.shared.errors import BadRequest, TooLong, Unsupported
from sailq.shared.jobs import FramesPart, ModelCard
from sailq.shared.media.options import Options
from sailq.shared.media.sizing import FPS, Budget, frame_count, image_size, video_size

from ..doctor.ion_heaps import MB
from ..engine.families.family import Family
from ..engine.patches import Grid
from .memory import Memory, Sizes, blocks, place
from .timings import HOST_SHARE, RECENT, NotTimed, Timings

SLOTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (256, 320, 384, 512, 1024, 1536)
"""Contexts to consider besides the shortest that holds a job."""
PROMPTS, GRIDS = (1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8)
"""How many prompts, and temporal grids, a launch may hold."""
TEMPLATE = 21
"""Tokens that the chat template adds to a question about one clip."""
QUESTION = 5
"""Tokens of the sample question, 请描述视频中的内容."""
_CONTEXT_STEP, _PROMPT_STEP = 32, 16


@dataclass(frozen=True)
class Workload:
    """Jobs of one kind: a clip of `grids` temporal grids of `patches` patches, and `prompt` tokens, of which
    `vision_tokens` stand for the clip; answers of `answer` tokens."""

    frames: int
    height: int
    width: int
    grids: int
    patches: int
    vision_tokens: int
    prompt: int
    answer: int


@dataclass(frozen=True)
class Rate:
    """The compiler's estimate, less the host's assumed share.

    Attributes:
        captions_per_hour: while jobs wait and `together` of them share each launch. The scheduler reaches it with 64
            slots and answers of any length (tests/unit/test_planned_rate.py), with fewer slots if answers have one.
        captions_alone: the same, while each job starts alone.
        tokens_per_second: of all slots, while they decode; starts are left out.
        step: seconds in which each slot gets a token.
        first_token: seconds from a job's patches to its first token, on a box without others; of the device alone.
        together: jobs that start together, which is fastest while jobs wait.
    """

    captions_per_hour: float
    captions_alone: float
    tokens_per_second: float
    step: float
    first_token: float
    together: int


@dataclass(frozen=True)
class Configuration:
    """One that fits."""

    sizes: Sizes
    memory: Memory
    rate: Rate


def workload(family: Family, clip: tuple[int, int, int], question: int, answer: int) -> Workload:
    """Sizes a clip of (frames, height, width) as a producer does.

    Raises:
        BadRequest, BadMedia, TooLong: a job could not have such a clip.
    """
    frames, height, width = clip
    for name, value in (("frame", frames), ("pixel of height", height), ("pixel of width", width),
                        ("token of question", question), ("token of answer", answer)):
        if value < 1:
            raise BadRequest(f"A job has at least 1 {name}, not {value}.")
    card = ModelCard(
        name="plan", context=2**31 - 1, min_pixels=family.min_pixels, max_pixels=family.max_pixels,
        patch_size=family.patch_size, merge_size=family.merge_size, temporal_patch_size=family.temporal_patch_size,
    )
    asked = Options(resized_height=height, resized_width=width)
    if frames > 1:
        frames = frame_count(Options(nframes=frames), frames + 1, FPS)  # an even number
    size = image_size(height, width, asked, card) if frames == 1 else video_size(height, width, frames, asked, card)
    Budget(card).check(frames, *size)
    t, h, w = grid(family, frames, *size)
    vision = family.vision_tokens((t, h, w))
    prompt = vision + TEMPLATE + question + (family.tokens_per_grid * t if frames > 1 else 0)
    return Workload(frames, *size, t, h * w, vision, prompt, answer)


def grid(family: Family, frames: int, height: int, width: int) -> Grid:
    """The grid of a medium of this size, which the model's family checks."""
    kind: Literal["image", "video"] = "image" if frames == 1 else "video"
    return family.grid(FramesPart(type=kind, blob="0" * 64, frames=frames, height=height, width=width))


def configurations(
    timings: Timings, work: Workload, heaps: Mapping[str, int], vision_quantize: str
) -> list[Configuration]:
    """The best configuration of each number of slots and each context that fits, the fastest first.

    Args:
        heaps: bytes of npu, vpu and vpp.

    Raises:
        TooLong: no net was timed that is large enough for a job.
        Unsupported: nothing fits.
    """
    # Rows of an answer begin, and are flushed, at multiples of RECENT.
    needed = _round(_round(work.prompt, RECENT) + _round(work.answer, RECENT), _CONTEXT_STEP)
    contexts = [needed, *(context for context in CONTEXTS if context > needed)]
    found: list[Configuration] = []
    known, missing = False, ""
    for slots, context in product(SLOTS, contexts):
        fitting = []
        for sizes in _sizes(work, slots, context, vision_quantize):
            try:
                allocated, speed = list(blocks(timings, sizes)), rate(timings, work, sizes)
            except NotTimed as error:
                missing = missing or str(error)  # of the smallest configuration
                continue
            known = True
            memory = place(allocated, heaps)
            if memory is not None:
                fitting.append(Configuration(sizes, memory, speed))
        if fitting:
            found.append(max(fitting, key=_worth))
    if not known:
        raise TooLong(
            f"The job needs a ViT of {work.patches} patches and a context of {needed} tokens ({work.prompt} of prompt "
            f"and {work.answer} of answer). {missing}"
        )
    if not found:
        total = sum(heaps.values()) // MB
        raise Unsupported(f"No configuration of {timings.model} for such jobs fits into heaps of {total} MB.")
    return sorted(found, key=_worth, reverse=True)


def rate(timings: Timings, work: Workload, sizes: Sizes) -> Rate:
    """Adds up the nets' times of a job. While jobs wait, as many start together as is fastest.

    Raises:
        NotTimed: see `Timings.timing`.
    """
    vit = {size: timings.time("vit", size, quantize=sizes.vision_quantize) for size in sizes.patches}
    prefill = {length: timings.prefill(length, sizes.slots) for length in sizes.prompts}
    step = timings.step(sizes.slots, sizes.context)
    started, together = min(
        ((_vision(work, count, vit) + time) / count, count)
        for length, time in prefill.items() for count in range(1, min(length // work.prompt, sizes.slots) + 1)
    )
    first = _vision(work, 1, vit) + prefill[min(prefill)]
    decoded = (work.answer - 1) * step / sizes.slots
    used = 1 - HOST_SHARE
    together_rate, alone_rate = (3.6e6 / (start + decoded) * used for start in (started, first))
    return Rate(
        together_rate, alone_rate, 1000 * sizes.slots / step * used, step / 1000 / used, first / 1000, together
    )


def _vision(work: Workload, clips: int, vit: Mapping[int, float]) -> float:
    """Milliseconds of these clips' grids: as many in a launch as the largest size holds, and the rest at the smallest
    that holds them."""
    largest = max(vit)
    full, rest = divmod(clips * work.grids, largest // work.patches)
    last = min(size for size in vit if size >= rest * work.patches)
    return full * vit[largest] + (vit[last] if rest else 0)


def _sizes(work: Workload, slots: int, context: int, vision_quantize: str) -> Iterator[Sizes]:
    """The ways to hold one or several prompts, and one or several grids, in a launch."""
    shortest = _round(work.prompt, _PROMPT_STEP)
    for prompts, grids in product(PROMPTS, GRIDS):
        length = _round(prompts * work.prompt, _PROMPT_STEP)
        if length <= context and prompts <= slots:
            yield Sizes(
                slots, context, tuple(sorted({shortest, length})),
                tuple(sorted({work.patches, grids * work.patches})), vision_quantize,
            )


def _round(tokens: int, multiple: int) -> int:
    return -(-tokens // multiple) * multiple


def _worth(configuration: Configuration) -> tuple[float, int]:
    """Captions first, then less memory."""
    return configuration.rate.captions_per_hour, -configuration.memory.total
