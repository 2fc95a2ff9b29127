"""Reads the fields that the host needs from the Hugging Face JSON files in a model directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sailq.shared.errors import Unsupported
from sailq.shared.jobs import ModelCard
from sailq.shared.settings import model_name

from ..model_files.config_files import GenerationConfig, TextConfig, checked, text_config
from ..model_files.json_files import Json, read_object
from .families.family import Family
from .families.registry import FAMILIES


@dataclass(frozen=True)
class ModelSpec:
    """A model's configuration. Fields have the names and the meaning of transformers'.

    Attributes:
        directory: the folder of the files.
        context: `max_position_embeddings`; a runner may hold less.
        eos_token_ids: end tokens of generation_config.json, or else of config.json; `ChatTokenizer.end_tokens` adds
        more.
        family: the model's family, with the sizes of its vision.
    """

    directory: Path
    vocab_size: int
    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int
    eos_token_ids: frozenset[int]
    family: Family

    @classmethod
    def load(cls, directory: Path) -> ModelSpec:
        """Read config.json, generation_config.json and the files that the family reads; raises Unsupported."""
        config = read_object(directory / "config.json")
        if config is None:
            raise Unsupported(f"{directory} holds no model: config.json is missing.")
        return cls.of(directory, config)

    @classmethod
    def of(cls, directory: Path, config: Json) -> ModelSpec:
        """Like `load`, with the directory's config.json at hand."""
        kind = config.get("model_type")
        family = FAMILIES.get(kind) if isinstance(kind, str) else None
        if family is None:
            raise Unsupported(f"{directory} holds a {kind!r} model; only {', '.join(FAMILIES)} are served.")
        text = checked(TextConfig, text_config(config), directory / "config.json")
        path = directory / "generation_config.json"
        generation = checked(GenerationConfig, read_object(path) or {}, path)
        eos = generation.eos_token_id or text.eos_token_id
        spec = cls(
            directory=directory, vocab_size=text.vocab_size, hidden_size=text.hidden_size,
            layers=text.num_hidden_layers, kv_heads=text.kv_heads, head_dim=text.dim,
            context=text.max_position_embeddings,
            eos_token_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
            family=family.read(directory, text, config.get("vision_config")),
        )
        if spec.family.deepstack > spec.layers:
            raise Unsupported(
                f"{directory}/config.json adds vision features after {spec.family.deepstack} layers, but has "
                f"{spec.layers}."
            )
        return spec

    def card(self, context: int, max_patches: int | None, version: str, greedy_only: bool = False) -> ModelCard:
        """The model card that a worker publishes, with its runner's limits."""
        return ModelCard(
            name=model_name(str(self.directory.resolve())),
            version=version,
            context=context,
            max_patches=max_patches,
            min_pixels=self.family.min_pixels,
            max_pixels=self.family.max_pixels,
            patch_size=self.family.patch_size,
            merge_size=self.family.merge_size,
            temporal_patch_size=self.family.temporal_patch_size,
            greedy_only=greedy_only,
        )
