"""Reads the fields that the host needs from the Hugging Face JSON files in a model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailq.shared.errors import Unsupported
from sailq.shared.jobs import ModelCard
from sailq.shared.settings import model_name

_Json = Mapping[str, Any]
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 28 * 28 * 1280


@dataclass(frozen=True)
class ModelSpec:
    """Qwen2-VL's configuration. Fields have the names and the meaning of transformers'.

    Attributes:
        directory: the folder of the files.
        context: `max_position_embeddings`; a runner may hold less.
        eos_token_ids: end tokens of generation_config.json, or else of config.json; `ChatTokenizer.end_tokens` adds
        more.
        min_pixels, max_pixels: an image's size limits, height × width.
        rescale, mean, std: how pixel values are normalised (see `patches.normalise`).
    """

    directory: Path
    vocab_size: int
    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int
    image_token_id: int
    video_token_id: int
    eos_token_ids: frozenset[int]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, directory: Path) -> ModelSpec:
        """Read config.json, preprocessor_config.json and generation_config.json; raises Unsupported."""
        config = _read(directory / "config.json")
        if config is None:
            raise Unsupported(f"{directory} holds no model: config.json is missing.")
        if config.get("model_type") != "qwen2_vl":
            kind = config.get("model_type")
            raise Unsupported(f"{directory} holds a {kind!r} model; only qwen2_vl is served.")
        processor = _read(directory / "preprocessor_config.json") or {}
        generation = _read(directory / "generation_config.json") or {}
        try:
            return cls._of(directory, config, processor, generation)
        except (KeyError, TypeError, ValueError) as error:
            raise Unsupported(f"The model files in {directory} do not fit together: {error!r}.") from None

    @classmethod
    def _of(cls, directory: Path, config: _Json, processor: _Json, generation: _Json) -> ModelSpec:
        # The hub's older files are flat; transformers 5 writes the language model's fields into text_config.
        text = {**config, **config.get("text_config", {})}
        vision, size = config["vision_config"], processor.get("size", {})
        eos = generation.get("eos_token_id") or text.get("eos_token_id")
        heads = text["num_attention_heads"]
        return cls(
            directory=directory,
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            layers=text["num_hidden_layers"],
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text["hidden_size"] // heads,
            context=text["max_position_embeddings"],
            image_token_id=config["image_token_id"],
            video_token_id=config["video_token_id"],
            eos_token_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
            patch_size=vision.get("patch_size", 14),
            merge_size=vision.get("spatial_merge_size", 2),
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            min_pixels=processor.get("min_pixels") or size.get("shortest_edge") or _MIN_PIXELS,
            max_pixels=processor.get("max_pixels") or size.get("longest_edge") or _MAX_PIXELS,
            rescale=processor.get("rescale_factor", 1 / 255),
            mean=tuple(processor.get("image_mean", _CLIP_MEAN)),
            std=tuple(processor.get("image_std", _CLIP_STD)),
        )

    def card(self, context: int, max_patches: int | None, version: str) -> ModelCard:
        """The model card that a worker publishes, with its runner's limits."""
        return ModelCard(
            name=model_name(str(self.directory.resolve())),
            version=version,
            context=context,
            max_patches=max_patches,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=self.temporal_patch_size,
        )


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no file; raises Unsupported for anything else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unsupported(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise Unsupported(f"{path} does not hold a JSON object.")
    return value
