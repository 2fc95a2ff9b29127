"""Finds a model whose nets were timed: a directory with such sizes, or a published one by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sailq.shared.errors import Unsupported

from ..engine.families.family import Family
from ..engine.model import ModelSpec
from ..model_files.config_files import text_config
from ..model_files.json_files import Json, read_object
from .timings import RECORDED, Timings

_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_VISION = ("embed_dim", "hidden_size", "intermediate_size", "mlp_ratio", "num_heads", "depth")


def timed() -> dict[str, Timings]:
    """The times of every model that has some, by its name."""
    return {file.stem: Timings.load(file) for file in sorted(RECORDED.glob("*.json"))}


def find(model: str) -> tuple[Timings, Family]:
    """The times of a model, and its family.

    Times of a decoder layer serve a model with another number of the same layers.

    Raises:
        Unsupported: neither a model directory nor a published name, or a model of other sizes.
    """
    known = timed()
    directory = Path(model).expanduser()
    config = read_object(directory / "config.json")
    if config is None:
        if model in known:
            timings = known[model]
            return timings, ModelSpec.of(RECORDED, timings.config).family
        raise Unsupported(
            f"Unknown model {model!r}: it is neither a directory with a config.json nor one of the models with known "
            f"times ({', '.join(known)})."
        )
    spec = ModelSpec.of(directory, config)
    for timings in known.values():
        if _sizes(config) == _sizes(timings.config):
            return timings.with_layers(spec.layers), spec.family
    raise Unsupported(
        f"The sizes in {directory}/config.json differ from those of the models with known times ({', '.join(known)}), "
        "and times of other sizes would be guesses."
    )


def _sizes(config: Json) -> tuple[Any, ...]:
    text, vision = text_config(config), config.get("vision_config", {})
    sizes = *(text.get(name) for name in _TEXT), *(vision.get(name) for name in _VISION)
    return config.get("model_type"), *sizes
