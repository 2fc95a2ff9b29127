"""The estimate for a bmodel that exists, from the sizes that it was compiled with."""

from __future__ import annotations

from sailq.shared.errors import SailqError
from sailq.shared.estimates import Estimate, MeasuredJob

from ..engine.families.family import Family
from ..model_files.inspection import Inspection, inspect
from ..model_files.model_paths import resolve
from .memory import Sizes
from .models import find
from .plan import Workload, grid, rate
from .timings import CORE_RATIO, HOST_SHARE, Timings


def estimate(model: str, job: MeasuredJob) -> Estimate | None:
    """See `shared.estimates.estimate`."""
    try:
        directory = resolve(model)
        timings, family = find(str(directory))
        return _estimate(timings, family, inspect(directory), job)
    except SailqError:
        return None


def _estimate(timings: Timings, family: Family, found: Inspection, job: MeasuredJob) -> Estimate | None:
    layout = found.layout
    if layout is None or layout.dynamic_prompt or layout.dynamic_vision or found.quantisation != timings.quantize:
        return None
    if not _in_8_bits(found, "lm_head"):  # as the times are
        return None
    grids = [grid(family, *medium) for medium in job.media]
    sizes = {h * w for _, h, w in grids}
    if len(sizes) != 1:  # grids of several sizes do not fill a launch evenly
        return None
    (patches,) = sizes
    prompts = tuple(size for size in layout.prompts if size >= job.prompt_tokens)
    launches = tuple(size for size in layout.patches if size >= patches)
    if not prompts or not launches:  # it runs in parts, or on a worker with another file
        return None
    work = Workload(*job.media[0], sum(t for t, _, _ in grids), patches, sum(map(family.vision_tokens, grids)),
                    job.prompt_tokens, round(job.answer_tokens))
    speed = rate(timings, work, Sizes(
        layout.slots, layout.context, prompts, launches, "w8f16" if _in_8_bits(found, "vit") else "f16",
    ))
    return Estimate(
        speed.first_token, 1 / speed.step, speed.captions_per_hour * job.answer_tokens / 3600, speed.captions_per_hour,
        f"the compiler's estimate ({timings.compiler}) of the device, less {HOST_SHARE:.0%} in which it is assumed to "
        f"wait for a host whose cores are assumed to be {CORE_RATIO} times slower than an x86 core",
    )


def _in_8_bits(found: Inspection, net: str) -> bool:
    return any("A16MatMul" in weight.name for weight in found.bmodel.weights.get(net, ()))
