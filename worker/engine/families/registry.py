"""The families that sailq serves."""

from __future__ import annotations

from collections.abc import Mapping

from .family import Family
from .qwen2_5_vl import Qwen25VL
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL

FAMILIES: Mapping[str, type[Family]] = {"qwen2_vl": Qwen2VL, "qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}
"""By the `model_type` in config.json."""

UNCONFIGURED: Mapping[str, Family] = {name: family() for name, family in FAMILIES.items()}
"""Also by `model_type`: families with the sizes of the published models. A bmodel without a config.json is checked
against them."""


def model_type(family: Family) -> str:
    """The `model_type` of a family's models."""
    return next(name for name, one in FAMILIES.items() if one is type(family))
