"""The families that are exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .qwen2_5_vl import Vit as Qwen25Vit
from .qwen2_vl import Vit as Qwen2Vit
from .qwen3_vl import Vit as Qwen3Vit
from .vision_nets import VisionTower


class _MakeVit(Protocol):
    def __call__(self, visual: Any, rescale: float, mean: Sequence[float], std: Sequence[float]) -> VisionTower: ...


class Family(NamedTuple):
    """What is exported differently from family to family.

    Attributes:
        vit: makes the vision tower from transformers' and the processor's normalisation.
        interleaved: see `decoder_nets.Rotary`.
        positions_per_token: rows of a static rotary table for each column of the cache. Positions are below the number
            of tokens where they count tokens, but not where they count seconds.
    """

    vit: _MakeVit
    interleaved: bool = False
    positions_per_token: int = 1


FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": Family(Qwen2Vit),
    "qwen2_5_vl": Family(Qwen25Vit, positions_per_token=4),
    "qwen3_vl": Family(Qwen3Vit, interleaved=True),
}
"""By the `model_type` in config.json."""
