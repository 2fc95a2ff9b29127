"""Model files with fields that are missing, of another type, or do not fit each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.models.random_checkpoint import FAMILIES
from sailq.shared.errors import Unsupported
from sailq.worker.engine.model import ModelSpec

CONFIG, IMAGES, VIDEOS = "config.json", "preprocessor_config.json", "video_preprocessor_config.json"
BOTH, GENERATION = "processor_config.json", "generation_config.json"
Files = dict[str, dict[str, Any]]


def loaded(folder: Path, files: Mapping[str, Any]) -> ModelSpec:
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))
    return ModelSpec.load(folder)


def files_of(family: str) -> Files:
    files, _ = FAMILIES[family](True, 4096)
    return files


def put(files: Files, file: str, path: str, value: object) -> None:
    """Set a field, or delete it if the value is `...`."""
    *parents, last = path.split(".")
    fields = files.setdefault(file, {})
    for name in parents:
        fields = fields[name]
    if value is ...:
        del fields[last]
    else:
        fields[last] = value


@pytest.mark.parametrize(("family", "file", "path", "value"), [
    *(("qwen3_vl", CONFIG, f"text_config.{name}", value)
      for name in ("hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers", "max_position_embeddings")
      for value in (..., None, 0, -1, "4", 4.5)),
    *(("qwen3_vl", CONFIG, "text_config.head_dim", value) for value in (0, -128, "128", 127, 64)),
    ("qwen3_vl", CONFIG, "text_config.num_key_value_heads", 3),
    *(("qwen3_vl", CONFIG, "text_config.rope_scaling.mrope_section", value)
      for value in ([24, 20, 21], [1, 2], "abc", [24, 20, 20, 0])),
    ("qwen2_5_vl", CONFIG, "rope_scaling.mrope_section", [16, 24, 25]),
    *((family, CONFIG, path, kind) for kind in ("yarn", "linear", 5) for family, path in (
        ("qwen2_vl", "rope_scaling.type"), ("qwen2_5_vl", "rope_scaling.type"),
        ("qwen3_vl", "text_config.rope_scaling.rope_type"))),
    ("qwen3_vl", CONFIG, "text_config.rope_scaling.mrope_interleaved", False),
    ("qwen2_5_vl", CONFIG, "rope_scaling.mrope_interleaved", True),
    *((family, CONFIG, "vision_config", value) for family in FAMILIES for value in (..., None, [], "x")),
    *((family, CONFIG, "vision_config.patch_size", value) for family in FAMILIES for value in (0, -16, "16")),
    *(("qwen3_vl", CONFIG, "vision_config.deepstack_visual_indexes", value)
      for value in (None, [99, 100, 101], [1, 1, 1], "abc", {"a": 1}, 5, [0, 1, 2, 3, 4])),
    *(("qwen3_vl", CONFIG, "vision_config.num_position_embeddings", value) for value in (0, -1, 2303, "2")),
    *(("qwen3_vl", CONFIG, "vision_config.num_heads", value) for value in (0, None, 7)),
    *(("qwen2_5_vl", CONFIG, "vision_config.window_size", value) for value in (0, 100, "112")),
    *(("qwen2_5_vl", CONFIG, "vision_config.fullatt_block_indexes", value) for value in ([99], [-1], "a", None)),
    *(("qwen2_5_vl", CONFIG, "vision_config.tokens_per_second", value) for value in (0, -2, "2", float("nan"), 1e9)),
    *((family, CONFIG, "image_token_id", value) for family in FAMILIES for value in (-1, "5", 10**6)),
    *(("qwen3_vl", file, name, value) for file in (IMAGES, VIDEOS)
      for name, value in (("patch_size", 14), ("image_mean", 0.5), ("image_mean", ["a"] * 3), ("image_std", [0, 0, 0]),
                          ("rescale_factor", "x"), ("size", []), ("size", {"longest_edge": "big"}))
      if (file, name, value) != (IMAGES, "patch_size", 14)),
    ("qwen3_vl", IMAGES, "image_mean", [0.1, 0.2, 0.3]),
    ("qwen2_vl", IMAGES, "min_pixels", 10**8),
    ("qwen2_vl", GENERATION, "eos_token_id", "a"), ("qwen2_vl", GENERATION, "eos_token_id", [[1]]),
])
def test_a_field_that_does_not_fit_is_refused_in_one_sentence(
    family: str, file: str, path: str, value: object, tmp_path: Path
) -> None:
    files = files_of(family)
    put(files, file, path, value)
    with pytest.raises(Unsupported) as caught:
        loaded(tmp_path, files)
    text = str(caught.value)
    assert str(tmp_path) in text and text.endswith(".") and "\n" not in text and "Error(" not in text


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_5s_processor_file_serves_too(family: str, tmp_path: Path) -> None:
    files = files_of(family)
    apart = loaded(tmp_path, files)
    both = {"image_processor": files.pop(IMAGES), "video_processor": files.pop(VIDEOS, {})}
    (tmp_path / IMAGES).unlink()
    (tmp_path / VIDEOS).unlink(missing_ok=True)
    assert loaded(tmp_path, files | {BOTH: both}) == apart
    bare = loaded(tmp_path, files | {BOTH: {}})
    assert apart.family != bare.family  # the published models' sizes
