"""The options that control how an answer's tokens are chosen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from .errors import Unsupported
from .structured_outputs import StructuredOutputs
from .validation import Flag, StrictModel

_StopText = Annotated[str, Field(min_length=1, max_length=256)]


class GenerationOptions(StrictModel, title="Answer options"):
    """Options of one answer, with transformers' names and meaning."""

    max_new_tokens: Annotated[
        int, Flag("N"), Field(ge=1, le=32768, description="Maximum number of tokens in the answer.")
    ] = 128
    temperature: Annotated[
        float, Flag("T"), Field(ge=0, le=100, description="Sampling temperature; 0 is greedy.")
    ] = 0.0
    top_p: Annotated[
        float, Flag("P"),
        Field(
            gt=0, le=1, description="Sample from the most likely tokens whose probabilities add up to P; 1 means all."
        ),
    ] = 1.0
    top_k: Annotated[
        int, Flag("K"),
        Field(ge=0, le=1_000_000, description="Sample from the K most likely tokens; 0 means all."),
    ] = 0
    repetition_penalty: Annotated[
        float, Flag("R"),
        Field(gt=0, le=100, description="Above 1, tokens of the prompt and of the answer so far become less likely."),
    ] = 1.0
    seed: Annotated[
        int | None, Flag("N", "random"),
        Field(ge=0, lt=2**63, description="Seed for sampling. The same seed gives the same answer."),
    ] = None
    stop: Annotated[
        tuple[_StopText, ...], Flag("TEXT"),
        Field(max_length=16, strict=False, description="Text that ends the answer and is cut off. Can be repeated."),
    ] = ()
    structured_outputs: Annotated[
        StructuredOutputs | None,
        Field(description='`structured_outputs`: form that the answer must have: `{"json": SCHEMA}`, '
              '`{"json_object": true}`, `{"regex": TEXT}`, `{"choice": [TEXT, …]}` or `{"grammar": TEXT}`. The '
              'commands have `--schema FILE` and `--choice A,B`.'),
    ] = None

    @model_validator(mode="after")
    def _one_end(self) -> GenerationOptions:
        if self.stop and self.structured_outputs is not None:
            raise PydanticCustomError(
                "stop", "stop cannot be combined with structured_outputs, which says where the answer ends"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty_structure(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A worker from before there were structured outputs reads every job that asks for none."""
        fields: dict[str, Any] = dump(self)
        if fields.get("structured_outputs") is None:
            fields.pop("structured_outputs", None)
        return fields

    @property
    def needs_scores(self) -> bool:
        """Whether the scores of all tokens are needed. A model that is `greedy_only` gives none."""
        return self.structured_outputs is not None or self.temperature > 0 or self.repetition_penalty != 1

    def refuse_greedy_only(self) -> None:
        """Raises Unsupported if these options need the scores of all tokens."""
        if self.needs_scores:
            raise Unsupported(
                "This model's file returns only the most likely token. It supports only temperature 0 and "
                "repetition_penalty 1, and no structured_outputs."
            )
