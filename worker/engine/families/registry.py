"""The families that sailq serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ...model_files.json_files import Json
from .family import Family
from .qwen2_5_vl import Qwen25VL
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL

FAMILIES: Mapping[str, Callable[[Path, Json], Family]] = {
    "qwen2_vl": Qwen2VL.read, "qwen2_5_vl": Qwen25VL.read, "qwen3_vl": Qwen3VL.read,
}
"""By the `model_type` in config.json: a function that reads a model's family from its directory and its config.json. It
raises Unsupported for files that do not fit."""

UNCONFIGURED: Mapping[str, Family] = {"qwen2_vl": Qwen2VL(), "qwen2_5_vl": Qwen25VL(), "qwen3_vl": Qwen3VL()}
"""Also by `model_type`: families with the sizes of the published models. A bmodel without a config.json is checked
against them."""


def model_type(family: Family) -> str:
    """The `model_type` of a family's models."""
    return next(name for name, one in UNCONFIGURED.items() if type(one) is type(family))
