"""The families that are exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .qwen2_5_vl import Vit as Qwen25Vit
from .qwen2_vl import Vit as Qwen2Vit
from .qwen3_vl import Vit as Qwen3Vit
from .vision_nets import VisionTower


class Nets(NamedTuple):
    """What is exported differently from family to family.

    Attributes:
        vit: the vision tower.
        positions_per_token: rows of a static rotary table for each column of the cache. Positions are below the number
            of tokens where they count tokens, but not where they count seconds.
    """

    vit: type[VisionTower]
    positions_per_token: int = 1


FAMILIES: Mapping[str, Nets] = {
    "qwen2_vl": Nets(Qwen2Vit),
    "qwen2_5_vl": Nets(Qwen25Vit, positions_per_token=4),
    "qwen3_vl": Nets(Qwen3Vit),
}
"""By the `model_type` in config.json."""
