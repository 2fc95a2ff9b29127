"""What a model file should reach on a box, as far as this machine knows.

A package offers a function `(model, job) -> Estimate | None` through the entry point group `sailq.estimates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

GROUP = "sailq.estimates"


@dataclass(frozen=True)
class MeasuredJob:
    """A job as it was measured. `media`: (frames, height, width) of each, as the model saw them; tokens: medians."""

    media: tuple[tuple[int, int, int], ...]
    prompt_tokens: int
    answer_tokens: float


@dataclass(frozen=True)
class Estimate:
    """The figures of one box.

    Attributes:
        first_token_latency: seconds, on an idle box, of the device alone.
        tokens_per_second: of one job alone.
        all_tokens_per_second, captions_per_hour: of all slots, while jobs wait.
        basis: whose estimate it is and what is assumed, in one sentence.
    """

    first_token_latency: float
    tokens_per_second: float
    all_tokens_per_second: float
    captions_per_hour: float
    basis: str


def estimate(model: str, job: MeasuredJob) -> Estimate | None:
    """The estimate for a model directory on this machine; None: the directory or the times of its nets are unknown."""
    found = (entry.load()(model, job) for entry in entry_points(group=GROUP))
    return next((one for one in found if one is not None), None)
