"""The fields of a model's JSON files that the host reads, checked: other software, or a person, wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sailq.shared.errors import Unsupported, quoted

from .json_files import Json

Count = Annotated[int, Field(ge=1, lt=2**31)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class Fields(BaseModel):
    """Some of the fields of a JSON object; others are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


F = TypeVar("F", bound=Fields)


def checked(kind: type[F], fields: object, path: Path, where: str = "") -> F:
    """The fields of a JSON object, which is the part `where` of a file. Raises Unsupported with the first complaint."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(filter(None, [where, *map(str, first["loc"])]))
        if first["type"] == "missing" or (fields is None and not first["loc"]):
            what = "is missing"
        elif first["type"] == "model_type":
            what = "is not a JSON object"
        elif first["type"] == "value_error":
            what = str(first["ctx"]["error"])
        else:
            what = f"is invalid: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise Unsupported(f"{path}: {quoted(place)} {quoted(what)}.") from None


class Rope(Fields):
    """How positions turn the language model's heads."""

    type: str | None = Field(default=None, validation_alias=AliasChoices("rope_type", "type"))
    mrope_section: Annotated[tuple[Count, Count, Count], Field(strict=False)] | None = None
    mrope_interleaved: bool | None = None


class TextConfig(Fields):
    """The language model's part of config.json, with transformers' names."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count
    eos_token_id: Token | list[Token] | None = None
    image_token_id: Token | None = None
    video_token_id: Token | None = None
    rope: Rope = Field(default=Rope(), validation_alias=AliasChoices("rope_scaling", "rope_parameters"))

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, fields: object) -> object:
        """A field that is null is as good as missing."""
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not share {self.kv_heads} heads of keys and values")
        section = self.rope.mrope_section
        if section is not None and 2 * sum(section) != self.dim:
            raise ValueError(f"mrope_section {list(section)} does not fit heads of {self.dim} dimensions")
        for token in (self.image_token_id, self.video_token_id):
            if token is not None and token >= self.vocab_size:
                raise ValueError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def dim(self) -> int:
        """Of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class GenerationConfig(Fields):
    """generation_config.json."""

    eos_token_id: Token | list[Token] | None = None


class Edges(Fields):
    """The limits of a size, height × width."""

    shortest_edge: Count | None = None
    longest_edge: Count | None = None


class ImageProcessor(Fields):
    """preprocessor_config.json, or a part of processor_config.json. Fields are None where they are not stated."""

    patch_size: Count | None = None
    merge_size: Count | None = None
    temporal_patch_size: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    size: Edges | None = None
    rescale_factor: Positive | None = None
    image_mean: Channels | None = None
    image_std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None


def text_config(config: Json) -> dict[str, Any]:
    """The language model's fields of a config.json. The hub's older files are flat; newer ones have them in
    `text_config`."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, Mapping) else dict(config)
